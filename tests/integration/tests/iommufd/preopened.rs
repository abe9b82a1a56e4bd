//! Devices that come open: with the command line, and with a request of the API.

use lab::live::{API_SOCKET, Live};
use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Turn, Vm};
use serde_json::json;

use crate::{LEFT, lab};

/// Two engines of one group.
const ENGINES: [&str; 2] = [LEFT[0], LEFT[1]];

/// The file of a device.
fn file_of(lab: &Turn<'_>, bdf: &str) -> String {
    let name = lab.sh(&format!("ls /sys/bus/pci/devices/{bdf}/vfio-dev"));
    format!("/dev/vfio/devices/{}", name.unwrap().trim())
}

/// What came of the transfers between the engines, as the guest says it now.
fn transfers(live: &mut Live<'_>) -> Vec<Outcome> {
    let of_peers = Finding::of_peers(&live.guest("guest-probe 2")).into_iter();
    of_peers.map(|(_, result)| result).collect()
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn a_vmm_that_may_open_nothing_has_the_devices_that_are_handed_in_through_every_start() {
    let lab = lab();
    let [one, two] = ENGINES.map(|bdf| file_of(&lab, bdf));
    // The VMM finds other things in the places of iommufd and of all devices.
    let script = format!(
        "exec 4<>/dev/iommu 5<>{one} 6<>{two} ; exec unshare -m sh -c \
         \"mount -t tmpfs none /dev/vfio && mount -o bind /dev/null /dev/iommu && exec p2p-vmm \\\"\\$@\\\"\" p2p-vmm \"$@\""
    );
    let vm = Vm::new("sh")
        .vmm(&["sh", "-c", &script, "p2p-vmm"])
        .platform(Some("iommufd=on,iommufd_fd=4"))
        .device_option("fd=5,p2p=on,id=one")
        .device_option("fd=6,p2p=on,id=two");
    let mut live = Live::boot_vm(&lab, &vm);
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
    // A device is bound once, so that the next start of the VM goes on with what the first one has bound.
    live.type_in("reboot -f");
    live.wait_for_boot();
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
    let (_, info) = live.call("GET", "vm.info", None);
    for bdf in ENGINES {
        let path = format!("/sys/bus/pci/devices/{bdf}");
        assert!(info.contains(&path), "{info}");
    }
    assert_eq!(live.power_off().exit, Exit::Code(0));
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn devices_that_ride_on_requests_come_and_go() {
    let lab = lab();
    let mut live = Live::boot_vm(&lab, &Vm::new("sh").platform(None));
    let add = |id: &str, file: &str| {
        let device = json!({"id": id, "p2p": true}).to_string();
        let words = ["vm-call", API_SOCKET, "PUT", "vm.add-device", &device, file];
        lab.run(words).unwrap().ok().unwrap()
    };
    let refused = add("null", "/dev/null");
    assert!(
        refused.starts_with("400") && refused.contains("not an open /dev/vfio/devices/vfioN"),
        "{refused}"
    );
    let files = ENGINES.map(|bdf| file_of(&lab, bdf));
    for (id, file) in ["one", "two"].into_iter().zip(&files) {
        let added = add(id, file);
        assert!(added.starts_with("200"), "{added}");
        live.told(&[("added", id)]);
    }
    let again = add("again", &files[0]);
    assert!(again.starts_with("409"), "{again}");
    live.wait_for_engines(2);
    assert_eq!(transfers(&mut live), [Outcome::Ok; 4]);
    // Who removes a device that came open closes it: another process may have it.
    live.remove(&json!({"id": "one", "timeout_ms": 120_000}));
    live.told(&[("unplug-requested", "one"), ("removed", "one")]);
    let open = live.open_files("/dev/vfio/devices");
    assert!(
        !open.contains(&files[0]) && open.contains(&files[1]),
        "{open:?}"
    );
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
