//! Conformance of VMMs, on p2p-vmm through its API.

use lab::Lab;
use lab::live::{Live, api_socket};
use lab::protocol::Exit;

use crate::{ENGINES, lab, name, peer, vm};

/// What must hold of a VM of this kind, with this device.
fn keeps(lab: &Lab, kind: &str, vm: &str, bdf: &str, p2p: &str) {
    let socket = api_socket(vm);
    let words = ["vmm-conformance", kind, vm, &socket, name(bdf), bdf, p2p];
    let command = lab
        .command(words)
        .deadline(std::time::Duration::from_secs(900));
    let output = command.run().unwrap();
    assert_eq!(output.code(), Some(0), "{output:#?}");
    let passed = output.stdout.lines().filter(|line| line.starts_with("ok "));
    assert!(passed.count() >= 2, "{output:#?}");
}

#[test]
fn a_vm_behind_its_api_conforms() {
    let lab = lab();
    let [a, b, c, d, ..] = ENGINES;
    let willing = Live::boot_vm(&lab, &peer(vm(&[a], None), b));
    keeps(&lab, "willing", "web", b, "on");
    keeps(&lab, "willing", "web", a, "off");
    assert_eq!(willing.power_off().exit, Exit::Code(0));
    keeps(&lab, "dead", "web", b, "on");

    let deaf = peer(vm(&[c], None), d).kernel_words("acpiphp.disable=1");
    let deaf = Live::boot_named(&lab, "db", &deaf);
    keeps(&lab, "unwilling", "db", d, "on");
    keeps(&lab, "unwilling", "db", c, "off");
    assert_eq!(deaf.power_off().exit, Exit::Code(0));
}
