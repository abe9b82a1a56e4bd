//! Tests with a VM.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use vmm_api::{Client, ClientError};

use crate::vmm::Vmm;
use crate::{HOST, MAIN, NO_CAPABILITIES, expected, kept, kernel, status, threads};

fn create(client: &Client, kernel: &Path) -> Result<(), ClientError> {
    let config = json!({
        "payload": {"kernel": kernel},
        "memory": {"size": 64 << 20},
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "serial": {"mode": "Null"},
    });
    client.put("vm.create", &config).map(drop)
}

/// Runs a VM, with all commands that need no devices.
fn run_vm(client: &Client, kernel: &Path) {
    create(client, kernel).unwrap();
    for call in [
        "vm.boot",
        "vm.pause",
        "vm.resume",
        "vm.power-button",
        "vm.reboot",
    ] {
        client.act(call).unwrap();
    }
    client.get::<Value>("vm.counters").unwrap();
    client.p2p().unwrap();
}

/// A directory of which no VMM was told, with a kernel.
fn other_images() -> TempDir {
    let images = tempfile::tempdir().unwrap();
    fs::write(images.path().join("kernel"), kernel::image()).unwrap();
    images
}

#[test]
#[ignore = "needs KVM and Landlock: cargo xtask test runs it where there is one"]
fn vcpus_have_filters_and_later_vms_cannot_open_other_files() {
    let images = other_images();
    let other = images.path().join("kernel");
    let mut vmm = Vmm::start(&[]);
    let first = vmm.dir().join("kernel");
    let client = Client::new(vmm.socket());
    // Before the first VM runs, all files can be opened.
    create(&client, &other).unwrap();
    client.act("vm.delete").unwrap();

    run_vm(&client, &first);
    // The filters of the thread that started them, and one of their own.
    let vcpu = status(["2", "3"], NO_CAPABILITIES);
    let api = status(["2", "1"], NO_CAPABILITIES);
    let others = [
        ("vcpu0", vcpu.clone()),
        ("vcpu1", vcpu),
        ("api", api.clone()),
        ("log", api),
        ("host", status(["2", "1"], &kept(HOST))),
    ];
    let main = status(["2", "2"], &kept(MAIN));
    assert_eq!(threads(&client), expected(main, &others));

    client.act("vm.delete").unwrap();
    let refused = create(&client, &other).unwrap_err().to_string();
    assert!(refused.contains("--landlock-rules"), "{refused}");
    run_vm(&client, &first);
    client.act("vmm.shutdown").unwrap();
    assert!(vmm.exits_successfully());
}

#[test]
#[ignore = "needs KVM and Landlock: cargo xtask test runs it where there is one"]
fn later_vms_can_open_files_allowed_by_the_operator() {
    let images = other_images();
    let other = images.path().join("kernel");
    let rule = format!("path={},access=r", images.path().display());
    for options in [&["--landlock-rules", &rule][..], &["--landlock", "false"]] {
        let vmm = Vmm::start(options);
        let client = Client::new(vmm.socket());
        run_vm(&client, &vmm.dir().join("kernel"));
        client.act("vm.delete").unwrap();
        run_vm(&client, &other);
    }
}
