//! What the OpenAPI document promises, tried by schemathesis (PyPI) against a VMM in the lab: with and without a VM.
//!
//! They take minutes and need pip; `cargo xtask test --long` runs them. schemathesis goes into `target/schemathesis`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod schemathesis {
    pub(crate) mod relay;
    pub(crate) mod tool;
}

use lab::SharedLab;
use lab::live::{API_SOCKET, Live};
use lab::protocol::Exit;
use schemathesis::relay::Relay;
use schemathesis::tool;

static LAB: SharedLab = SharedLab::new("nvme-one-group", "schemathesis");

const DRIVES: [(&str, &str); 2] = [("one", "0000:03:00.0"), ("two", "0000:04:00.0")];
/// Ends the VMM; and what never ends.
const NEVER: [&str; 2] = ["/vmm.shutdown", "/events"];

#[test]
#[ignore = "takes minutes and pip: cargo xtask test --long runs it"]
fn a_vmm_without_a_vm_does_what_its_document_says() {
    let lab = LAB.turn();
    let program = tool::install();
    let vmm = lab.command(["p2p-vmm", "--api-socket", "/tmp/idle"]);
    let vmm = vmm.deadline(tool::PATIENCE * 2).spawn().unwrap();
    lab.sh("until [ -S /tmp/idle ]; do usleep 20000; done")
        .unwrap();
    let found = Relay::new(&lab, "/tmp/idle").serve(|port| tool::run(&program, port, &NEVER));
    assert!(found.success(), "schemathesis found something: see above");
    lab.sh("vm-call /tmp/idle PUT vmm.shutdown").unwrap();
    assert_eq!(vmm.wait().unwrap().exit, Exit::Code(0));
}

#[test]
#[ignore = "takes minutes and pip: cargo xtask test --long runs it"]
fn a_vmm_whose_vm_has_devices_does_what_its_document_says() {
    let lab = LAB.turn();
    for (_, bdf) in DRIVES {
        lab.bind_vfio(bdf).unwrap();
    }
    let program = tool::install();
    let mut live = Live::boot(&lab, "");
    live.add_drives(DRIVES);
    // The VM is to be there to the end, with its devices: their names are found out from what it answers.
    let mut excluded = NEVER.to_vec();
    excluded.extend(["/vm.shutdown", "/vm.delete", "/vm.reboot"]);
    excluded.push("/vm.remove-device");
    let found = Relay::new(&lab, API_SOCKET).serve(|port| tool::run(&program, port, &excluded));
    assert!(found.success(), "schemathesis found something: see above");

    // Whatever was asked last.
    live.call("PUT", "vm.resume", None);
    let (_, info) = live.call("GET", "vm.info", None);
    assert!(info.contains("\"state\":\"Running\""), "{info}");
    assert!(DRIVES.iter().all(|(_, bdf)| info.contains(bdf)), "{info}");
    let read = "for d in /dev/nvme?n1; do dd if=$d of=/dev/null bs=4096 count=1 iflag=direct && echo read; done";
    assert_eq!(live.guest(read).matches("read").count(), 2);
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
