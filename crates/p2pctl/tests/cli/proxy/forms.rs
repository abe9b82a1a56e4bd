//! Descriptions in forms that cloud-hypervisor understands and a gate might not: serde takes an array for a struct, and
//! the last of two values for one key.

use super::*;

/// A device without a word of P2P in the array form of v53's `DeviceConfig`: path, iommu, id, pci_segment.
fn array(path: &Path) -> Value {
    json!([path, false, "x", 0, null, null])
}

#[test]
fn a_device_in_array_form_is_refused() {
    let stage = Stage::new("switch-four-nvme", |machine| {
        running(&[device(machine, "0000:03:00.0")], true)
    });
    let path = stage.path("0000:04:00.0");
    for (call, body) in [
        ("vm.add-device", array(&path)),
        ("vm.create", json!({"devices": [array(&path)]})),
        ("vm.create", json!({"devices": {"0": array(&path)}})),
        (
            "vm.create",
            json!([{}, {}, null, null, null, null, [array(&path)]]),
        ),
    ] {
        let (status, answer) = stage.ask("PUT", call, &body);
        assert!(
            (400..500).contains(&status),
            "{call} {body}: {status} {answer}"
        );
        assert!(stage.heard.try_recv().is_err(), "{call} {body}");
    }
}

#[test]
fn a_part_of_a_vm_in_array_form_is_refused() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    let devices = ["0000:03:00.0", "0000:04:00.0"].map(|sbdf| json!({"path": stage.path(sbdf)}));
    for (part, value) in [
        (
            "platform",
            json!([0, null, null, null, null, false, false, true]),
        ),
        ("cpus", json!([1, 1])),
        ("memory", json!([1 << 30])),
        ("memory", json!({"size": 0, "zones": [["a", 1 << 30]]})),
    ] {
        let mut config = json!({ "devices": devices });
        config[part] = value;
        let (status, answer) = stage.ask("PUT", "vm.create", &config);
        assert!((400..500).contains(&status), "{part}: {status} {answer}");
        assert!(stage.heard.try_recv().is_err(), "{part}");
    }
}

#[test]
fn a_link_to_a_device_is_passed_on_as_the_device() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    let link = stage.dir.path().join("link");
    std::os::unix::fs::symlink(stage.path("0000:03:00.0"), &link).unwrap();
    let (status, answer) = stage.ask("PUT", "vm.create", &json!({"devices": [{"path": link}]}));
    assert_eq!(status, 204, "{answer}");
    let (_, body) = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        body["devices"][0]["path"],
        json!(stage.path("0000:03:00.0"))
    );
}

#[test]
fn a_device_that_comes_as_a_descriptor_is_judged_as_the_device_that_it_is() {
    let stage = Stage::new("switch-four-nvme", |machine| {
        running(&[device(machine, "0000:03:00.0")], true)
    });
    let open = std::fs::File::open("/dev/null").unwrap();
    let by_descriptor: vmm_api::DeviceConfig =
        format!("fd={},id=x", std::os::fd::AsRawFd::as_raw_fd(&open))
            .parse()
            .unwrap();
    let client = vmm_api::Client::new(stage.dir.path().join("proxy"));
    let refused = |words: &str| {
        let error = client.add_device(&by_descriptor).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(stage.heard.try_recv().is_err());
    };
    refused("the PCI function behind a descriptor is unknown");
    // From now on /dev/null is the second drive.
    let number = stage.machine.sys().join("dev/char/1:3");
    std::fs::create_dir_all(&number).unwrap();
    let drive = stage.path("0000:04:00.0");
    std::os::unix::fs::symlink(&drive, number.join("device")).unwrap();
    refused("this VM maps every BAR for every device");
    *stage.info.lock().unwrap() = running(&[stage.path("0000:03:00.0")], false);
    client.add_device(&by_descriptor).unwrap();
    let (call, body) = stage.heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!((call.as_str(), body), ("vm.add-device", json!({"id": "x"})));
}
