//! Conformance of IOMMU contexts, on the kernel's VFIO container, opened by us and by vfio-ioctls; and what a narrow IOMMU does not reach.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lab::{Lab, Profile, Vm};

const DEVICE: &str = "0000:03:00.0";
const NEIGHBOUR: &str = "0000:04:00.0";

fn conformance(lab: &Lab, neighbours: &[&str]) {
    for bdf in [DEVICE].iter().chain(neighbours) {
        lab.bind_vfio(bdf).unwrap();
    }
    for (way, least) in [("type1", 15), ("vfio-ioctls", 12)] {
        let output = lab.run(["dma-conformance", way, DEVICE]).unwrap();
        assert_eq!(output.code(), Some(0), "{output:#?}");
        let passed = output.stdout.lines().filter(|l| l.starts_with("ok "));
        assert!(passed.count() >= least, "{output:#?}");
    }
}

#[test]
fn type1_conforms() {
    let profile = Profile::named("edu-one-group").unwrap();
    conformance(&Lab::boot(&profile, "conformance").unwrap(), &[NEIGHBOUR]);
}

/// A server's processor, whose firmware puts 64-bit BARs at 768 GiB, with an IOMMU that reaches 512 GiB.
#[test]
fn on_an_iommu_of_39_bits_contexts_conform_and_peers_beyond_are_refused() {
    const DRIVES: [&str; 2] = ["0000:05:00.0", "0000:06:00.0"];
    const MEMORY: &str = "0000:07:00.0";
    let mut profile = Profile::named("two-domains").unwrap();
    profile.machine.address_bits = None;
    let lab = Lab::boot(&profile, "conformance-39").unwrap();
    conformance(&lab, &[NEIGHBOUR, DRIVES[0], DRIVES[1], MEMORY]);

    let drives = |p2p: bool| {
        let vm = Vm::new("true");
        DRIVES.into_iter().fold(vm, |vm, bdf| match p2p {
            true => vm.p2p_device(bdf),
            false => vm.device(bdf),
        })
    };
    let output = lab.vm(&drives(true)).run().unwrap();
    assert_eq!(output.code(), Some(2), "{output:#?}");
    assert_eq!(output.stdout, "", "no guest was started");
    let resource = format!("/sys/bus/pci/devices/{}/resource", DRIVES[1]);
    let resource = lab.read(&resource).unwrap();
    let buffer = resource.lines().nth(2).unwrap();
    let start = buffer.split(' ').next().unwrap();
    let start = u64::from_str_radix(start.trim_start_matches("0x"), 16).unwrap();
    assert!(start >= 1 << 39, "{resource}");
    for word in [&*format!("{start:#x}"), "0x8000000000", "p2p off"] {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
    // What the guest's addresses need not be on the bus, reaches every device.
    let output = lab.vm(&drives(false)).run().unwrap();
    assert_eq!(output.code(), Some(0), "{output:#?}");
    assert!(output.stdout.contains("guest: exit 0"), "{output:#?}");
}
