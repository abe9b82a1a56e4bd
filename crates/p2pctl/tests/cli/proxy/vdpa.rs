//! vDPA devices, which are functions of the host to the IOMMU.

use super::*;

/// What stands for the device file of a vDPA device, and its number.
const FILE: &str = "/dev/null";
const NUMBER: &str = "1:3";

/// Puts a function behind the device file.
fn is_behind(stage: &Stage, sbdf: &str) {
    let device = stage.path(sbdf).join("vdpa0/vhost-vdpa-0");
    std::fs::create_dir_all(&device).unwrap();
    let numbers = stage.machine.sys().join("dev/char");
    std::fs::create_dir_all(&numbers).unwrap();
    let link = numbers.join(NUMBER);
    drop(std::fs::remove_file(&link));
    std::os::unix::fs::symlink(device, link).unwrap();
}

fn asked(stage: &Stage) -> [(&'static str, Value); 2] {
    *stage.info.lock().unwrap() = running(&[], false);
    let vdpa = json!({"path": FILE, "num_queues": 1});
    [
        (
            "vm.create",
            json!({"payload": {"kernel": "/k"}, "vdpa": [vdpa]}),
        ),
        ("vm.add-vdpa", vdpa),
    ]
}

fn refused(stage: &Stage, words: &str) {
    for (call, body) in asked(stage) {
        let (status, answer) = stage.ask("PUT", call, &body);
        assert_eq!(status, 409, "{call}: {answer}");
        assert!(answer.to_string().contains(words), "{call}: {answer}");
        assert!(stage.heard.try_recv().is_err(), "{call}");
    }
}

#[test]
fn invariant_3_a_vdpa_device_is_judged_as_the_function_behind_it() {
    let stage = Stage::new("switch-without-acs", |_| Value::Null);
    is_behind(&stage, "0000:03:00.0");
    refused(&stage, "0000:03:00.0 reaches 0000:04:00.0");
    // Two devices of one group: what the kernel translates for one it translates for the other.
    let stage = Stage::new("switch-joined", |_| Value::Null);
    is_behind(&stage, "0000:03:00.0");
    refused(
        &stage,
        "shares its IOMMU group with 0000:04:00.0, which is bound to vfio-pci",
    );
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    is_behind(&stage, "0000:03:00.0");
    for (call, body) in asked(&stage) {
        assert_eq!(stage.ask("PUT", call, &body).0, 204, "{call}");
        let heard = stage.heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!(heard, (call.to_owned(), body));
    }
}

#[test]
fn a_vdpa_device_without_a_function_behind_it_is_refused() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    refused(&stage, "no PCI function is behind");
}

#[test]
fn a_vdpa_device_is_judged_again_when_the_vm_opens_it() {
    let stage = Stage::new("switch-four-nvme", |_| Value::Null);
    is_behind(&stage, "0000:03:00.0");
    stage.info.lock().unwrap()["config"] = json!({"vdpa": [{"path": FILE}]});
    for call in ["vm.boot", "vm.reboot"] {
        assert_eq!(stage.ask("PUT", call, &Value::Null).0, 204, "{call}");
        stage.heard.recv_timeout(PATIENCE).unwrap();
    }
    std::fs::remove_file(stage.machine.sys().join("dev/char").join(NUMBER)).unwrap();
    for call in ["vm.boot", "vm.reboot"] {
        let (status, answer) = stage.ask("PUT", call, &Value::Null);
        assert_eq!(status, 409, "{call}: {answer}");
    }
}
