//! `p2pctl proxy`, for a program that answers as cloud-hypervisor v53 does.

mod forms;
mod opening;
mod restore;
mod vdpa;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use test_machine::hosts;

use crate::run::OnDisk;

/// Far more than any step takes, so that a hang fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy for a VMM on a machine.
struct Stage {
    machine: OnDisk,
    dir: TempDir,
    proxy: Child,
    /// Bodies of what was to be changed, as the VMM got them.
    heard: Receiver<(String, Value)>,
    /// What the VMM answers to `vm.info`.
    info: Arc<Mutex<Value>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.proxy.kill().unwrap();
        self.proxy.wait().unwrap();
    }
}

impl Stage {
    /// `info` is what the VMM answers to `vm.info` at first.
    fn new(machine: &str, info: impl Fn(&OnDisk) -> Value) -> Self {
        let machine = OnDisk::new(&hosts::named(machine));
        let dir = tempfile::tempdir().unwrap();
        let (vmm, listen) = (dir.path().join("vmm"), dir.path().join("proxy"));
        let info = Arc::new(Mutex::new(info(&machine)));
        let heard = vmm_at(&vmm, info.clone());
        let proxy = Command::new(env!("CARGO_BIN_EXE_p2pctl"))
            .args(["proxy", "--sysfs"])
            .arg(machine.sys())
            .arg("--api-socket")
            .arg(&vmm)
            .arg("--listen")
            .arg(&listen)
            .arg("--snapshots")
            .arg(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while UnixStream::connect(&listen).is_err() {
            assert!(started.elapsed() < PATIENCE, "the proxy does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Self {
            machine,
            dir,
            proxy,
            heard,
            info,
        }
    }

    fn path(&self, sbdf: &str) -> PathBuf {
        device(&self.machine, sbdf)
    }

    /// Status and body of the answer to a call.
    fn ask(&self, verb: &str, call: &str, body: &Value) -> (u16, Value) {
        let text = body.to_string();
        self.ask_raw(verb, call, if body.is_null() { "" } else { &text })
    }

    fn ask_raw(&self, verb: &str, call: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.dir.path().join("proxy")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let request = format!(
            "{verb} /api/v1/{call} HTTP/1.1\r\nAccept: */*\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let (head, body) = message(&mut stream).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

fn device(machine: &OnDisk, sbdf: &str) -> PathBuf {
    machine.sys().join("bus/pci/devices").join(sbdf)
}

/// Head and body of the next message; none at the end.
fn message(stream: &mut UnixStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&some[..count]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
        if bytes.len() >= end + 4 + length {
            return Some((head, bytes.split_off(end + 4)));
        }
    }
}

/// Takes a device that is asked back out of the VM's description, as cloud-hypervisor does; in the tree it stays until the
/// guest has let go.
fn ask_back(info: &mut Value, body: &[u8]) {
    let request: Value = serde_json::from_slice(body).unwrap();
    let devices = info["config"]["devices"].as_array_mut().unwrap();
    devices.retain(|device| device["id"] != request["id"]);
}

fn vmm_at(path: &Path, info: Arc<Mutex<Value>>) -> Receiver<(String, Value)> {
    let listener = UnixListener::bind(path).unwrap();
    let (tell, heard) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (tell, info) = (tell.clone(), info.clone());
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                while let Some((head, body)) = message(&mut stream) {
                    let call = head
                        .split(' ')
                        .nth(1)
                        .unwrap()
                        .rsplit('/')
                        .next()
                        .unwrap()
                        .to_owned();
                    let answer = match call.as_str() {
                        "vmm.ping" => {
                            json!({"build_version": "v53.0", "version": "53.0.0", "pid": 1, "features": []})
                        }
                        "vm.info" => info.lock().unwrap().clone(),
                        "vm.remove-device" => {
                            ask_back(&mut info.lock().unwrap(), &body);
                            Value::Null
                        }
                        _ => Value::Null,
                    };
                    if answer.is_null() {
                        tell.send((call, serde_json::from_slice(&body).unwrap_or_default()))
                            .unwrap();
                        stream
                            .write_all(b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\n\r\n")
                            .unwrap();
                        continue;
                    }
                    let body = answer.to_string();
                    let head = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all((head + &body).as_bytes()).unwrap();
                }
            });
        }
    });
    heard
}

/// A VM that has these devices, started with peer-to-peer for all or for none.
fn running(devices: &[PathBuf], p2p: bool) -> Value {
    let devices: Vec<Value> = devices.iter().map(|path| json!({"path": path})).collect();
    json!({"config": {
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 46},
        "memory": {"size": 512 << 20},
        "platform": {"vfio_p2p_dma": p2p},
        "devices": devices,
    }, "state": "Running"})
}

#[test]
fn a_vm_is_created_with_what_cloud_hypervisor_has_to_be_told() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    let device = stage.path("0000:03:00.0");
    let config = json!({"payload": {"kernel": "/k"}, "devices": [{"path": device, "p2p": false, "id": "x"}]});
    assert_eq!(stage.ask("PUT", "vm.create", &config).0, 204);
    let (call, body) = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(call, "vm.create");
    assert_eq!(
        body,
        json!({"payload": {"kernel": "/k"}, "devices": [{"path": device, "id": "x"}],
            "platform": {"vfio_p2p_dma": false}})
    );
}

#[test]
fn invariant_1_peers_of_two_groups_are_refused_before_anything_is_asked_for() {
    let stage = Stage::new("switch-without-acs", |_| Value::Null);
    let devices =
        ["0000:03:00.0", "0000:04:00.0"].map(|sbdf| json!({"path": stage.path(sbdf), "p2p": true}));
    let (status, answer) = stage.ask("PUT", "vm.create", &json!({ "devices": devices }));
    assert_eq!(status, 409, "{answer}");
    let answer = answer.to_string();
    assert!(
        answer.contains("group 4 and group 5") && answer.contains("not bound"),
        "{answer}"
    );
    assert!(stage.heard.try_recv().is_err());
}

#[test]
fn invariant_3_a_device_that_reaches_the_hosts_drive_is_not_added_unless_that_is_accepted() {
    let stage = Stage::new("switch-without-acs", |_| running(&[], false));
    let path = stage.path("0000:03:00.0");
    let (status, answer) = stage.ask("PUT", "vm.add-device", &json!({ "path": path }));
    assert_eq!(status, 409, "{answer}");
    let answer = answer.to_string();
    assert!(
        answer.contains("0000:03:00.0 reaches 0000:04:00.0"),
        "{answer}"
    );
    assert!(stage.heard.try_recv().is_err());
    let new = json!({"path": path, "expose": ["0000:04:00.0"]});
    assert_eq!(stage.ask("PUT", "vm.add-device", &new).0, 204);
    let (_, body) = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(body, json!({ "path": path }));
}

#[test]
fn a_device_is_added_if_the_vm_was_started_for_it() {
    let stage = Stage::new("switch-four-nvme", |machine| {
        running(&[device(machine, "0000:03:00.0")], true)
    });
    // The first is there with peer-to-peer for all, so a second must be its peer, of the same group.
    for (p2p, words) in [
        (false, "this VM maps every BAR for every device"),
        (true, "cannot share P2P"),
    ] {
        let new = json!({"path": stage.path("0000:04:00.0"), "p2p": p2p});
        let (status, answer) = stage.ask("PUT", "vm.add-device", &new);
        assert_eq!(status, 409, "{answer}");
        let answer = answer.to_string();
        assert!(answer.contains(words), "{answer}");
    }
    let stage = Stage::new("switch-four-nvme", |machine| {
        running(&[device(machine, "0000:03:00.0")], false)
    });
    let new = json!({"path": stage.path("0000:04:00.0"), "p2p": false});
    assert_eq!(stage.ask("PUT", "vm.add-device", &new).0, 204);
    let (_, body) = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(body, json!({"path": stage.path("0000:04:00.0")}));
}

#[test]
fn what_joins_devices_without_their_bars_has_none_either() {
    const ALL: [u8; 6] = [0, 1, 2, 3, 4, 5];
    let stage = Stage::new("switch-four-nvme", |machine| {
        let mut info = running(&[device(machine, "0000:03:00.0")], true);
        info["config"]["devices"][0]["x_exclude_mmap_bars"] = json!(ALL);
        info
    });
    let path = stage.path("0000:04:00.0");
    // One peer alone has nobody to reach, and nobody may reach it.
    for p2p in [false, true] {
        let new = json!({"path": path, "p2p": p2p});
        assert_eq!(stage.ask("PUT", "vm.add-device", &new).0, 204);
        let (_, body) = stage.heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!(body, json!({"path": path, "x_exclude_mmap_bars": ALL}));
    }
}

/// A VM that has both drives of a machine, called `left` and `right`, without their BARs or with them.
fn both(machine: &OnDisk, excluded: &Value) -> Value {
    let drives = [("left", "0000:03:00.0"), ("right", "0000:04:00.0")];
    let mut info = running(&drives.map(|(_, sbdf)| device(machine, sbdf)), true);
    for (at, (id, _)) in drives.iter().enumerate() {
        info["config"]["devices"][at]["id"] = json!(id);
        info["config"]["devices"][at]["x_exclude_mmap_bars"] = excluded.clone();
        info["device_tree"][id] = json!({ "id": id });
    }
    info
}

#[test]
fn a_vm_of_devices_without_their_bars_is_known_as_such_when_the_last_is_asked_back() {
    let all = json!([0, 1, 2, 3, 4, 5]);
    let stage = Stage::new("switch-four-nvme", |machine| both(machine, &all));
    for id in ["left", "right"] {
        let request = json!({ "id": id });
        assert_eq!(stage.ask("PUT", "vm.remove-device", &request).0, 204);
        let heard = stage.heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!(heard, ("vm.remove-device".to_owned(), request));
    }
    let path = stage.path("0000:03:00.0");
    let new = json!({"path": path, "p2p": false});
    // The guest may still have them, but nobody reaches their BARs, and nobody will reach this one's.
    assert_eq!(stage.ask("PUT", "vm.add-device", &new).0, 204);
    let (_, body) = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(body, json!({"path": path, "x_exclude_mmap_bars": all}));
}

#[test]
fn invariant_2_beside_a_device_that_the_guest_still_has_none_is_added() {
    let stage = Stage::new("switch-four-nvme", |machine| both(machine, &Value::Null));
    for id in ["left", "right"] {
        let request = json!({ "id": id });
        assert_eq!(stage.ask("PUT", "vm.remove-device", &request).0, 204);
        stage.heard.recv_timeout(PATIENCE).unwrap();
    }
    let new = json!({"path": stage.path("0000:03:00.0"), "p2p": false});
    for gone in ["left", "right"] {
        let (status, answer) = stage.ask("PUT", "vm.add-device", &new);
        assert_eq!(status, 409, "{answer}");
        let answer = answer.to_string();
        let words =
            format!("the removal of {gone} was requested, and the guest has not released it");
        assert!(answer.contains(&words), "{answer}");
        let mut info = stage.info.lock().unwrap();
        info["device_tree"].as_object_mut().unwrap().remove(gone);
    }
    assert_eq!(stage.ask("PUT", "vm.add-device", &new).0, 204);
}

#[test]
fn what_gives_no_devices_passes() {
    let info = running(&[], false);
    let stage = Stage::new("switch-four-nvme", |_| info.clone());
    assert_eq!(stage.ask("GET", "vm.info", &Value::Null), (200, info));
    let resize = json!({"desired_vcpus": 2, "p2p": true});
    assert_eq!(stage.ask("PUT", "vm.resize", &resize).0, 204);
    let heard = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(heard, ("vm.resize".to_owned(), resize));
}
