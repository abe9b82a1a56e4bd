//! NVMe drives with a controller memory buffer, and a guest whose unmodified kernel does P2PDMA.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Lab, Output, SharedLab, Turn, Vm};

static LAB: SharedLab = SharedLab::new("nvme-one-group", "nvme");

const FIRST: &str = "0000:03:00.0";
const SECOND: &str = "0000:04:00.0";
/// Where the guest writes, in bytes from the start of a drive.
const WRITTEN: u64 = 8192;
const BLOCK: usize = 4096;

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
    assert_eq!(written(&lab, "disk0"), 0x0050_3250_0000_0002);
    assert_eq!(written(&lab, "disk1"), 0x0050_3250_0000_0001);
}

#[test]
fn without_p2p_the_guests_kernel_does_not_even_try() {
    let lab = lab();
    let vm = Vm::new("guest-probe p2pmem").device(FIRST).device(SECOND);
    let output = lab.vm(&vm).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let results = transfers(&output);
    assert_eq!(results.len(), 4, "{output:#?}");
    for (result, error) in results {
        assert_eq!(result, Outcome::Nothing);
        assert!(error.unwrap().contains("Invalid argument"), "{output:#?}");
    }
    assert_eq!(written(&lab, "disk0"), 0);
    assert_eq!(written(&lab, "disk1"), 0);
}
