//! Tests of the restrictions of p2p-vmm's threads, read from procfs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "dialect/kernel.rs"]
mod kernel;
mod sandbox {
    mod needs_kvm;
}
#[path = "dialect/vmm.rs"]
mod vmm;

use std::collections::BTreeMap;
use std::fs;

use vmm::Vmm;
use vmm_api::Client;

/// Of a thread: seccomp mode, number of filters, no_new_privs, effective capabilities.
type Status = [String; 4];

const NO_CAPABILITIES: &str = "0000000000000000";

/// The status of each thread of the process, by name, without KVM's kernel threads.
fn threads(client: &Client) -> BTreeMap<String, Status> {
    let pid = client.ping().unwrap().pid;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap().trim().to_owned()
        };
        let keys = ["Seccomp:", "Seccomp_filters:", "NoNewPrivs:", "CapEff:"];
        (value("Name:"), keys.map(value))
    });
    let tasks = tasks.filter(|(name, _)| !name.starts_with("kvm-"));
    tasks.collect()
}

/// The main thread keeps CAP_IPC_LOCK, and the host thread CAP_SYS_ADMIN.
const MAIN: u64 = 1 << 14;
const HOST: u64 = 1 << 21;

/// The capabilities of these that this process has too, because tests may run without root.
fn kept(capabilities: u64) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    let permitted = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
    format!("{:016x}", permitted & capabilities)
}

fn status(seccomp: [&str; 2], capabilities: &str) -> Status {
    [seccomp[0], seccomp[1], "1", capabilities].map(str::to_owned)
}

fn expected(main: Status, others: &[(&str, Status)]) -> BTreeMap<String, Status> {
    let others = others
        .iter()
        .map(|(name, s)| ((*name).to_owned(), s.clone()));
    others.chain([("p2p-vmm".to_owned(), main)]).collect()
}

#[test]
fn every_thread_has_a_filter_and_only_the_main_thread_a_capability() {
    let dir = tempfile::tempdir().unwrap();
    let events = format!("path={}", dir.path().join("events").display());
    // The main thread has a second filter, for clone3.
    for (mode, main, seccomp) in [
        ("true", ["2", "2"], ["2", "1"]),
        ("log", ["2", "2"], ["2", "1"]),
        ("false", ["0", "0"], ["0", "0"]),
    ] {
        let mut vmm = Vmm::start(&["--event-monitor", &events, "--seccomp", mode]);
        let client = Client::new(vmm.socket());
        let other = status(seccomp, NO_CAPABILITIES);
        let others = ["api", "events", "log"].map(|name| (name, other.clone()));
        let host = ("host", status(seccomp, &kept(HOST)));
        let others: Vec<_> = others.into_iter().chain([host]).collect();
        assert_eq!(
            threads(&client),
            expected(status(main, &kept(MAIN)), &others),
            "--seccomp {mode}"
        );
        client.act("vmm.shutdown").unwrap();
        assert!(vmm.exits_successfully());
        assert!(!vmm.socket().exists());
    }
}

#[test]
fn a_signal_ends_the_vmm() {
    let mut vmm = Vmm::start(&[]);
    let pid = Client::new(vmm.socket()).ping().unwrap().pid;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(vmm.exits_successfully());
    assert!(!vmm.socket().exists());
}
