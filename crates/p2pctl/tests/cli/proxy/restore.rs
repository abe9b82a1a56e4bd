//! Calls that bring a whole VM: from a snapshot, and from another host.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// The request for a snapshot of a VM with this description.
fn snapshot(stage: &Stage, config: &Value) -> Value {
    let dir = stage.dir.path().join("snapshot");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    json!({"source_url": format!("file://{}", dir.display()), "prefault": true})
}

#[track_caller]
fn assert_refused(stage: &Stage, call: &str, request: &Value, words: &str) {
    let (status, answer) = stage.ask("PUT", call, request);
    assert!((400..500).contains(&status), "{status} {answer}");
    let answer = answer.to_string();
    assert!(answer.contains(words), "{answer}");
    assert!(stage.heard.try_recv().is_err());
}

#[test]
fn a_vm_without_devices_is_restored() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    let request = snapshot(&stage, &json!({"memory": {"size": 1 << 30}}));
    assert_eq!(stage.ask("PUT", "vm.restore", &request).0, 204);
    let heard = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(heard, ("vm.restore".to_owned(), request));
}

#[test]
fn the_devices_of_a_snapshot_are_judged() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    let drives = ["0000:03:00.0", "0000:04:00.0"].map(|sbdf| json!({"path": stage.path(sbdf)}));
    let with = |p2p: bool| {
        let cpus = json!({"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 39});
        json!({"devices": drives, "cpus": cpus, "platform": {"vfio_p2p_dma": p2p}})
    };
    let request = snapshot(&stage, &with(true));
    assert_refused(
        &stage,
        "vm.restore",
        &request,
        "lets every device of the VM reach all others",
    );
    let request = snapshot(&stage, &json!({"devices": [[stage.path("0000:03:00.0")]]}));
    assert_refused(&stage, "vm.restore", &request, "not a list of objects");
    let request = snapshot(&stage, &with(false));
    let (status, answer) = stage.ask("PUT", "vm.restore", &request);
    assert_eq!(status, 204, "{answer}");
}

#[test]
fn a_snapshot_that_cannot_be_held_to_what_was_read_is_refused() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    let mut request = snapshot(&stage, &json!({}));
    let file = stage.dir.path().join("snapshot/config.json");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    assert_refused(&stage, "vm.restore", &request, "others may change");
    fs::remove_file(&file).unwrap();
    assert_refused(&stage, "vm.restore", &request, "cannot read");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &file,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_refused(&stage, "vm.restore", &request, "it is not a regular file");
    fs::remove_file(&file).unwrap();
    fs::write(&file, format!("{{}}{}", " ".repeat(1 << 20))).unwrap();
    assert_refused(&stage, "vm.restore", &request, "too long");
    fs::write(&file, "{}").unwrap();
    request["vfio_fds"] = json!([{"id": "x", "fd": 3}]);
    assert_refused(&stage, "vm.restore", &request, "unknown devices");
    assert_refused(
        &stage,
        "vm.restore",
        &json!({"source_url": "tcp://x"}),
        "not the file:// URL",
    );
}

#[test]
fn a_vm_of_another_host_is_refused() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    let request = json!({"receiver_url": "tcp:0.0.0.0:5000"});
    assert_refused(
        &stage,
        "vm.receive-migration",
        &request,
        "migrated from another host",
    );
}
