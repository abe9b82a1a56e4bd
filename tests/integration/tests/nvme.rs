//! NVMe drives with a controller memory buffer, and a guest whose unmodified kernel does P2PDMA.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Lab, Output, SharedLab, Turn, Vm};

/// The test program is built of this file twice, under two names: `nvme_acs.rs` is it on ports with ACS and AMD Zen CPUs.
const ACS: bool = lab::is_acs_variant(env!("CARGO_CRATE_NAME"));

static LAB: SharedLab = SharedLab::new("nvme-one-group", env!("CARGO_CRATE_NAME")).with_acs(ACS);

const FIRST: &str = "0000:03:00.0";
const SECOND: &str = "0000:04:00.0";
/// Where the guest writes, in bytes from the start of a drive.
const WRITTEN: u64 = 8192;
const BLOCK: usize = 4096;
/// What a guest writes, with the number of the drive in whose memory it was.
const PATTERN: u64 = 0x0050_3250_0000_0000;

/// A drive's image, as seen from outside of the host.
fn image(lab: &Lab, drive: &str) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(lab.dir().join(format!("{drive}.img")))
        .unwrap()
}

fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for (bdf, drive, byte) in [(FIRST, "disk0", 0xa0), (SECOND, "disk1", 0xb1)] {
        lab.bind_vfio(bdf).unwrap();
        let image = image(&lab, drive);
        image.write_all_at(&[byte; BLOCK], 0).unwrap();
        image.write_all_at(&[0; BLOCK], WRITTEN).unwrap();
    }
    lab
}

fn transfers(output: &Output) -> Vec<(Outcome, Option<String>)> {
    Finding::in_console(&output.stdout)
        .into_iter()
        .filter_map(|finding| match finding {
            Finding::Transfer { result, error, .. } => Some((result, error)),
            _ => None,
        })
        .collect()
}

/// The first 64-bit word that the guest has written to a drive.
fn written(lab: &Lab, drive: &str) -> u64 {
    let mut block = [0; BLOCK];
    image(lab, drive)
        .read_exact_at(&mut block, WRITTEN)
        .unwrap();
    let words: Vec<u64> = block
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert!(words.iter().all(|word| *word == words[0]), "{words:x?}");
    words[0]
}

#[test]
fn an_unmodified_guest_does_p2pdma_both_ways_below_the_virtual_switch() {
    let lab = lab();
    let vm = Vm::new("guest-probe p2pmem")
        .p2p_device(FIRST)
        .p2p_device(SECOND);
    let output = lab.vm(&vm).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    assert_eq!(
        transfers(&output),
        vec![(Outcome::Ok, None); 4],
        "{output:#?}"
    );
    // Each block came out of the other drive's memory, which has the other number.
    assert_eq!(written(&lab, "disk0"), PATTERN | 2);
    assert_eq!(written(&lab, "disk1"), PATTERN | 1);
}

/// Linux in the guest refuses such transfers, unless it sees an AMD Zen CPU: then the IOMMU of the host stops them, and the
/// drives do not notice (linux 7.2 drivers/pci/p2pdma.c: `cpu_supports_p2pdma()`).
#[test]
fn without_p2p_nothing_is_transferred() {
    let lab = lab();
    let vm = Vm::new("guest-probe p2pmem").device(FIRST).device(SECOND);
    let output = lab.vm(&vm).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let results = transfers(&output);
    assert_eq!(results.len(), 4, "{output:#?}");
    let warned = output.stderr.contains("silently");
    assert_eq!(warned, ACS, "{output:#?}");
    for (result, error) in results {
        if ACS {
            assert_eq!(result, Outcome::Lost, "{output:#?}");
        } else {
            assert_eq!(result, Outcome::Nothing, "{output:#?}");
            assert!(error.unwrap().contains("Invalid argument"), "{output:#?}");
        }
    }
    for drive in ["disk0", "disk1"] {
        let written = written(&lab, drive);
        assert!(
            ![PATTERN | 1, PATTERN | 2].contains(&written),
            "{written:x}"
        );
    }
}
