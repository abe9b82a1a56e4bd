//! Which of the kernel's interfaces a VM has, and what is said of it.

use lab::{CloudHypervisor, GUEST, Vm};

use crate::{LEFT, OFF, ON, assert_peers_reach_each_other, lab, left, spoken};

/// A VMM in a host that has all but what a line of shell takes away.
fn without(line: &str) -> Vm {
    let script = format!("{line} && exec p2p-vmm \"$@\"");
    left("guest-probe 2").vmm(&["unshare", "-m", "sh", "-c", &script, "p2p-vmm"])
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn peers_reach_each_other_on_either_interface_and_iommufd_is_chosen_by_itself() {
    let lab = lab();
    for (platform, said) in [
        (
            None,
            "assigned by iommufd, which kernel and devices have all of",
        ),
        (ON, "assigned by iommufd, as asked for"),
        (OFF, "assigned by type1, as asked for"),
    ] {
        let vm = left("guest-probe 2").platform(platform);
        let output = lab.command(spoken(&vm)).deadline(GUEST).run().unwrap();
        assert_peers_reach_each_other(&output);
        assert!(output.stdout.contains(said), "{platform:?}: {output:#?}");
    }
}

#[test]
#[ignore = "needs a kernel with iommufd: cargo xtask test --iommufd"]
fn where_something_is_missing_for_iommufd_it_is_said_and_containers_do() {
    const DEV: &str = "mkdir -p /tmp/dev && mount -t tmpfs none /tmp/dev && \
        cp -a /dev/kvm /dev/vfio /tmp/dev && mount -o bind /tmp/dev /dev";
    const DEVICES: &str = "mount -t tmpfs none /dev/vfio/devices";
    let lab = lab();
    for (taken, why) in [
        (
            DEV,
            "type1, because /dev/iommu cannot be opened: No such file",
        ),
        (
            DEVICES,
            "type1, because 0000:03:00.0 has no file in /dev/vfio/devices: No such file",
        ),
    ] {
        let vm = without(taken).platform(None);
        let output = lab.command(spoken(&vm)).deadline(GUEST).run().unwrap();
        assert_peers_reach_each_other(&output);
        assert!(output.stdout.contains(why), "{output:#?}");

        let vm = without(taken).platform(ON);
        let output = lab.command(spoken(&vm)).deadline(GUEST).run().unwrap();
        assert_eq!(output.code(), Some(2), "refused: {output:#?}");
        assert!(!output.stdout.contains("guest: up"), "{output:#?}");
    }
}

#[test]
#[ignore = "needs a kernel with iommufd (cargo xtask test --iommufd), CH_BIN and CH_REMOTE"]
fn what_cloud_hypervisor_cannot_attach_on_iommufd_is_attached() {
    let lab = lab();
    CloudHypervisor::given().unwrap().put(&lab).unwrap();
    let engines = |vm: Vm| vm.device(LEFT[0]).device(LEFT[1]).platform(ON);
    let theirs = engines(Vm::new("guest-probe 2").vmm(&["cloud-hypervisor"]));
    let output = lab.vm(&theirs).deadline(GUEST).run().unwrap();
    assert_ne!(output.code(), Some(0), "{output:#?}");
    assert!(output.stderr.contains("Bad address"), "{output:#?}");

    let ours = left("guest-probe 2").platform(ON);
    let output = lab.vm(&ours).deadline(GUEST).run().unwrap();
    assert_peers_reach_each_other(&output);
}
