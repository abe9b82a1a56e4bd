//! The two ways to embed the crates. The example `light` is a VMM with VFIO devices of its own, those of vfio-ioctls, which
//! takes only `iommu-group` and `guest-topology`. In the example `embed` a `p2p_vfio::DeviceSet` owns the devices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{CMDLINE, GUEST, GUEST_INITRAMFS, GUEST_KERNEL, Lab, Output, SharedLab, Turn, Way};

/// The test program is built of this file twice, under two names: `embed_acs.rs` is it on ports with ACS. There the
/// IOMMU translates the requests between the drives; here a switch routes them directly, by bus address.
const ACS: bool = lab::is_acs_variant(env!("CARGO_CRATE_NAME"));

static LAB: SharedLab = SharedLab::new("two-domains", env!("CARGO_CRATE_NAME"))
    .with_acs(ACS)
    .with_trace();

/// Two drives in one group, and one in another group.
const FIRST: &str = "0000:05:00.0";
const SECOND: &str = "0000:06:00.0";
const ELSEWHERE: &str = "0000:0c:00.0";
/// Where the guest writes, in bytes from the start of a drive.
const WRITTEN: u64 = 8192;
const BLOCK: usize = 4096;
/// What a guest writes, with the number of the drive in whose memory it was.
const PATTERN: u64 = 0x0050_3250_0000_0000;

/// A drive's image, as seen from outside of the host.
fn image(lab: &Lab, drive: &str) -> File {
    let path = lab.dir().join(format!("{drive}.img"));
    File::options().read(true).write(true).open(path).unwrap()
}

fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in [FIRST, SECOND, ELSEWHERE] {
        lab.bind_vfio(bdf).unwrap();
    }
    for (drive, byte) in [("disk0", 0xa0), ("disk1", 0xb1)] {
        let image = image(&lab, drive);
        image.write_all_at(&[byte; BLOCK], 0).unwrap();
        image.write_all_at(&[0; BLOCK], WRITTEN).unwrap();
    }
    lab
}

const EXAMPLES: [&str; 2] = ["light", "embed"];

/// Runs the probe in a guest of an example with these devices.
fn run(lab: &Lab, example: &str, devices: &[String]) -> Output {
    let cmdline = format!("{CMDLINE} -- run guest-probe p2pmem");
    let words = [example, GUEST_KERNEL, GUEST_INITRAMFS, &cmdline];
    let words = words.into_iter().chain(devices.iter().map(String::as_str));
    lab.command(words).deadline(GUEST).run().unwrap()
}

fn device(bdf: &str) -> String {
    format!("/sys/bus/pci/devices/{bdf}")
}

fn peer(bdf: &str) -> String {
    format!("{},p2p=on", device(bdf))
}

fn transfers(output: &Output) -> Vec<(Outcome, Option<String>)> {
    let transfer = |finding| match finding {
        Finding::Transfer { result, error, .. } => Some((result, error)),
        _ => None,
    };
    let findings = Finding::in_console(&output.stdout);
    findings.into_iter().filter_map(transfer).collect()
}

/// The first 64-bit word of the block that the guest writes to a drive.
fn written(lab: &Lab, drive: &str) -> u64 {
    let mut word = [0; 8];
    image(lab, drive).read_exact_at(&mut word, WRITTEN).unwrap();
    u64::from_le_bytes(word)
}

#[test]
fn drives_of_one_group_do_p2pdma_both_ways() {
    for example in EXAMPLES {
        let lab = lab();
        let before = lab.trace().unwrap().len();
        let output = run(&lab, example, &[peer(FIRST), peer(SECOND)]);
        assert_eq!(output.exit, Exit::Code(0), "{example}: {output:#?}");
        assert_eq!(
            transfers(&output),
            vec![(Outcome::Ok, None); 4],
            "{example}: {output:#?}"
        );
        // Each block came out of the other drive's memory, which has the other number.
        assert_eq!(written(&lab, "disk0"), PATTERN | 2, "{example}");
        assert_eq!(written(&lab, "disk1"), PATTERN | 1, "{example}");
        // Nothing failed, such as a mapping of a BAR where another is.
        assert_eq!(output.stderr, "", "{example}");
        let trace = lab.trace().unwrap();
        for bdf in [FIRST, SECOND].map(|bdf| bdf.parse().unwrap()) {
            let requests = trace.iter().skip(before);
            let mut requests = requests.filter(|request| request.from == bdf);
            let straight = requests.any(|request| request.way == Way::Straight);
            assert_eq!(straight, !ACS, "{example}");
        }
    }
}

/// They are below root ports of their own, in a context without their BARs.
#[test]
fn drives_that_are_not_peers_transfer_nothing() {
    for example in EXAMPLES {
        let lab = lab();
        let output = run(&lab, example, &[device(FIRST), device(SECOND)]);
        assert_eq!(output.exit, Exit::Code(0), "{example}: {output:#?}");
        let results = transfers(&output);
        assert_eq!(results.len(), 4, "{example}: {output:#?}");
        for (result, _) in results {
            assert_ne!(result, Outcome::Ok, "{example}: {output:#?}");
        }
        for drive in ["disk0", "disk1"] {
            let written = written(&lab, drive);
            assert!(
                ![PATTERN | 1, PATTERN | 2].contains(&written),
                "{example}: {written:x}"
            );
        }
    }
}

#[test]
fn drives_of_two_groups_are_refused_before_any_is_opened() {
    let lab = lab();
    // The kernel logs each device that a process opens.
    let log = || lab.sh("dmesg | grep -c vfio-pci || true").unwrap();
    let groups = [FIRST, ELSEWHERE].map(|bdf| format!("group {}", lab.group(bdf).unwrap()));
    assert_ne!(groups[0], groups[1]);
    for example in EXAMPLES {
        let before = log();
        let output = run(&lab, example, &[peer(FIRST), peer(ELSEWHERE)]);
        assert_eq!(output.exit, Exit::Code(2), "{example}: {output:#?}");
        assert_eq!(output.stdout, "", "no guest was started");
        assert_eq!(log(), before, "{example}");
        for word in [FIRST, ELSEWHERE, &groups[0], &groups[1]] {
            assert!(
                output.stderr.contains(word),
                "{example}: {word}: {output:#?}"
            );
        }
    }
}
