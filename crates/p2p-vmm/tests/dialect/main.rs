//! cloud-hypervisor's REST dialect: p2p-vmm's responses to recorded requests of `ch-remote`.
//!
//! `resources/api/*.json` are the recordings, byte by byte. To record them again with a `ch-remote`:
//! `CH_REMOTE=…/ch-remote cargo test -p p2p-vmm --test dialect -- --ignored record`

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod kernel;
mod recorder;
mod recording;
mod vmm;

use std::path::PathBuf;

use recording::Recording;
use vmm::Vmm;

/// Commands without a guest, which need no KVM.
const WITHOUT_GUEST: [&str; 22] = [
    "ping",
    "info",
    "boot",
    "pause",
    "counters",
    "delete",
    "create $DIR/unknown.json",
    "create $DIR/unsupported.json",
    "create $DIR/vm.json",
    "create $DIR/vm.json",
    "info",
    "add-device path=/sys/bus/pci/devices/ffff:00:00.0",
    "add-device path=/sys/bus/pci/devices/ffff:00:00.0,iommu=on",
    "remove-device nvme0",
    "pause",
    "resume",
    "shutdown",
    "reboot",
    "add-disk path=/tmp/disk",
    "resize --cpus 2",
    "delete",
    "shutdown-vmm",
];

/// Commands to a running VM.
const WITH_GUEST: [&str; 16] = [
    "create $DIR/vm.json",
    "boot",
    "boot",
    "info",
    "counters",
    "remove-device nvme0",
    "pause",
    "pause",
    "info",
    "resume",
    "resume",
    "reboot",
    "shutdown",
    "info",
    "delete",
    "shutdown-vmm",
];

fn file(name: &str) -> PathBuf {
    let resources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../resources/api");
    resources.join(format!("{name}.json"))
}

#[test]
fn responses_without_a_guest_equal_the_recording() {
    Recording::load(&file("without-guest")).replay(&mut Vmm::start(&[]));
}

mod needs_kvm {
    use super::*;

    #[test]
    #[ignore = "needs KVM: cargo xtask test runs it where there is one"]
    fn responses_with_a_guest_equal_the_recording() {
        Recording::load(&file("with-guest")).replay(&mut Vmm::start(&[]));
    }
}

#[test]
#[ignore = "makes the recordings, with the program in CH_REMOTE"]
fn record() {
    let client = std::env::var_os("CH_REMOTE").unwrap();
    for (name, commands) in [
        ("without-guest", WITHOUT_GUEST.as_slice()),
        ("with-guest", WITH_GUEST.as_slice()),
    ] {
        let vmm = Vmm::start(&[]);
        recorder::record(client.as_ref(), &vmm, commands).save(&file(name));
    }
}
