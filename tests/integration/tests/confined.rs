//! A VMM with devices and a running guest, and what it has given up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{GUEST, SharedLab, Vm};

static LAB: SharedLab = SharedLab::new("nvme-one-group", "confined");

const DRIVES: [&str; 2] = ["0000:03:00.0", "0000:04:00.0"];
const SOCKET: &str = "/tmp/confined";

/// Prints of each thread: name, filters, no_new_privs, capabilities. What KVM runs for it in the kernel is none.
const THREADS: &str = "for t in /proc/$(pidof p2p-vmm)/task/*; do \
     awk '/^Name:|^Seccomp:|^Seccomp_filters:|^NoNewPrivs:|^CapEff:/ {printf \"%s \", $2} END {print \"\"}' $t/status; \
     done | grep -v ^kvm-";

/// By thread: no_new_privs and seccomp's values, and effective capabilities.
fn threads(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let lines = text.lines().map(str::split_ascii_whitespace);
    lines
        .map(|mut words| (words.next().unwrap(), words.collect()))
        .collect()
}

#[test]
fn a_vmm_with_devices_has_given_up_all_but_what_they_need() {
    let lab = LAB.turn();
    for bdf in DRIVES {
        lab.bind_vfio(bdf).unwrap();
    }
    let vm = DRIVES.iter().fold(
        Vm::new("modprobe nvme ; guest-probe p2pmem ; echo probed ; sleep 3600"),
        |vm, bdf| vm.p2p_device(bdf),
    );
    let mut argv = vm.argv();
    argv.extend(["--api-socket", SOCKET].map(str::to_owned));
    let mut vmm = lab.command(argv).deadline(GUEST).spawn().unwrap();
    vmm.wait_for("probed", GUEST).unwrap();

    // The order of the kernel (linux fs/proc/array.c): capabilities, then NoNewPrivs, Seccomp, Seccomp_filters.
    // CAP_IPC_LOCK is what the main thread keeps, CAP_SYS_ADMIN what the one keeps that reads the host.
    let expected = BTreeMap::from([
        ("p2p-vmm", vec!["0000000000004000", "1", "2", "2"]),
        ("api", vec!["0000000000000000", "1", "2", "1"]),
        ("host", vec!["0000000000200000", "1", "2", "1"]),
        ("log", vec!["0000000000000000", "1", "2", "1"]),
        ("vcpu0", vec!["0000000000000000", "1", "2", "3"]),
    ]);
    assert_eq!(threads(&lab.sh(THREADS).unwrap()), expected);

    let call = |verb: &str, call: &str, body: &str| {
        let words = ["vm-call", SOCKET, verb, call, body].into_iter();
        let words = words.filter(|word| !word.is_empty());
        lab.run(words).unwrap().ok().unwrap()
    };
    assert!(call("GET", "vm.p2p", "").starts_with("200"));
    // It is still there to be asked, and opens nothing but what its first VM had.
    assert!(call("PUT", "vm.delete", "").starts_with("204"));
    let other = r#"{"payload":{"kernel":"/bin/busybox"}}"#;
    let refused = call("PUT", "vm.create", other);
    assert!(
        refused.starts_with("400") && refused.contains("--landlock-rules"),
        "{refused}"
    );
    assert!(call("PUT", "vmm.shutdown", "").starts_with("200"));
    let output = vmm.wait().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let transfers = Finding::in_console(&output.stdout);
    let transfers = transfers.into_iter().filter_map(|finding| match finding {
        Finding::Transfer { result, .. } => Some(result),
        _ => None,
    });
    assert_eq!(transfers.collect::<Vec<_>>(), [Outcome::Ok; 4]);
}
