//! Devices that a VM opens when it boots and boots again, after the host has changed.

use super::*;

/// The calls that open devices.
const CALLS: [&str; 2] = ["vm.boot", "vm.reboot"];

/// A VM that was created with one device, as its description is from then on; `more` are keys of the device.
fn created(stage: &Stage, sbdf: &str, more: &Value) {
    let path = stage.path(sbdf);
    let mut new = json!({"path": path, "id": "x"});
    let keys = more.as_object().unwrap().clone();
    new.as_object_mut().unwrap().extend(keys);
    let config = json!({"payload": {"kernel": "/k"}, "devices": [new]});
    let (status, answer) = stage.ask("PUT", "vm.create", &config);
    assert_eq!(status, 204, "{answer}");
    let (_, config) = stage.heard.recv_timeout(PATIENCE).unwrap();
    *stage.info.lock().unwrap() = json!({"config": config, "state": "Created"});
}

fn passes(stage: &Stage, call: &str) {
    assert_eq!(stage.ask("PUT", call, &Value::Null).0, 204, "{call}");
    let heard = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(heard, (call.to_owned(), Value::Null));
}

fn refused(stage: &Stage, call: &str, words: &str) {
    let (status, answer) = stage.ask("PUT", call, &Value::Null);
    assert_eq!(status, 409, "{call}: {answer}");
    assert!(answer.to_string().contains(words), "{call}: {answer}");
    assert!(stage.heard.try_recv().is_err(), "{call}");
}

#[test]
fn invariant_3_devices_are_judged_again_when_the_vm_opens_them() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    created(&stage, "0000:03:00.0", &json!({}));
    let driver = stage.path("0000:03:00.0").join("driver");
    let bound = std::fs::read_link(&driver).unwrap();
    for call in CALLS {
        passes(&stage, call);
        std::fs::remove_file(&driver).unwrap();
        refused(&stage, call, "0000:03:00.0 is not bound to vfio-pci");
        std::os::unix::fs::symlink(&bound, &driver).unwrap();
        passes(&stage, call);
    }
}

#[test]
fn invariant_3_what_was_accepted_at_first_is_accepted_again_and_nothing_else_is() {
    let stage = Stage::new("switch-without-acs", |_| Value::Null);
    created(&stage, "0000:03:00.0", &json!({"expose": ["0000:04:00.0"]}));
    for call in CALLS {
        passes(&stage, call);
    }
    // Another proxy, which did not see what was accepted.
    let stage = Stage::new("switch-without-acs", |machine| {
        running(&[device(machine, "0000:03:00.0")], false)
    });
    for call in CALLS {
        refused(&stage, call, "0000:03:00.0 reaches 0000:04:00.0");
    }
}

#[test]
fn invariant_1_peers_that_are_in_two_groups_by_now_are_not_opened() {
    let stage = Stage::new("switch-four-nvme", |machine| {
        running(
            &["0000:03:00.0", "0000:04:00.0"].map(|sbdf| device(machine, sbdf)),
            true,
        )
    });
    for call in CALLS {
        refused(&stage, call, "cannot share P2P");
    }
    *stage.info.lock().unwrap() = running(&[stage.path("0000:03:00.0")], true);
    for call in CALLS {
        passes(&stage, call);
    }
}

#[test]
fn a_vm_without_devices_opens_nothing() {
    let stage = Stage::new("switch-four-nvme", |_| running(&[], true));
    for call in CALLS {
        passes(&stage, call);
    }
}

#[test]
fn a_device_of_which_only_a_descriptor_is_known_is_not_opened_again() {
    let stage = Stage::new("switch-four-nvme", |_| {
        let mut info = running(&[], false);
        info["config"]["devices"] = json!([{"id": "x", "fd": -1}]);
        info
    });
    for call in CALLS {
        refused(
            &stage,
            call,
            "the PCI function behind a descriptor is unknown",
        );
    }
}
