//! Groups and device paths, read from a directory in the shape of sysfs.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its host should stop"
)]
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use iommu_group::{GroupId, Sysfs, SysfsError};
use tempfile::TempDir;
use test_machine::{Machine, bdf};

/// The `/sys` of a host with a root port (group 2, pcieport), an endpoint below it (group 6, vfio-pci), a second function
/// without a driver in the same group, a function without a group, and a platform device in group 6.
struct Host(TempDir);

impl Host {
    fn path(&self) -> PathBuf {
        self.0.path().join("sys")
    }
}

fn host() -> Host {
    let machine = Machine::new(
        "
         00:04.0 root-port group=2 driver=pcieport
           01:00.0 endpoint group=6 driver=vfio-pci
           01:00.1 endpoint group=6
         00:1f.0 host",
    );
    let host = Host(machine.tree());
    let device = host.path().join("devices/platform/arm-smmu");
    fs::create_dir_all(&device).unwrap();
    let members = host.path().join("kernel/iommu_groups/6/devices");
    symlink(&device, members.join("arm-smmu")).unwrap();
    host
}

#[test]
fn group_of_a_function() {
    let host = host();
    let sysfs = Sysfs::new(host.path());
    assert_eq!(sysfs.group_of(bdf("00:04.0")).unwrap(), GroupId(2));
    assert_eq!(sysfs.group_of(bdf("01:00.1")).unwrap(), GroupId(6));
    assert_eq!(sysfs.groups().unwrap(), [GroupId(2), GroupId(6)]);
}

#[test]
fn members_come_with_their_drivers_and_foreign_ones_last() {
    let host = host();
    let members = Sysfs::new(host.path()).group_members(GroupId(6)).unwrap();
    let seen: Vec<_> = members
        .iter()
        .map(|m| (m.sbdf, m.name.as_str(), m.driver.as_deref()))
        .collect();
    assert_eq!(
        seen,
        [
            (Some(bdf("01:00.0")), "0000:01:00.0", Some("vfio-pci")),
            (Some(bdf("01:00.1")), "0000:01:00.1", None),
            (None, "arm-smmu", None),
        ]
    );
}

#[test]
fn missing_things_are_told_apart() {
    let host = host();
    let sysfs = Sysfs::new(host.path());
    assert!(matches!(
        sysfs.group_of(bdf("00:1f.0")),
        Err(SysfsError::NoGroup { sbdf }) if sbdf == bdf("00:1f.0")
    ));
    assert!(matches!(
        sysfs.group_of(bdf("00:1e.0")),
        Err(SysfsError::NoSuchFunction { sbdf, .. }) if sbdf == bdf("00:1e.0")
    ));
    assert!(matches!(
        sysfs.group_members(GroupId(9)),
        Err(SysfsError::NoSuchGroup {
            group: GroupId(9),
            ..
        })
    ));
    assert!(matches!(
        sysfs.driver_of(bdf("00:1e.0")),
        Err(SysfsError::NoSuchFunction { .. })
    ));
    assert_eq!(sysfs.driver_of(bdf("00:1f.0")).unwrap(), None);
}

#[test]
fn a_group_link_that_is_no_group_is_odd() {
    let host = host();
    let device = host.path().join("devices/pci0000:00/0000:00:1f.0");
    symlink("/elsewhere/none", device.join("iommu_group")).unwrap();
    assert!(matches!(
        Sysfs::new(host.path()).group_of(bdf("00:1f.0")),
        Err(SysfsError::OddLink { .. })
    ));
}

#[test]
fn every_way_to_a_device_leads_to_its_address() {
    let host = host();
    let root = &host.path();
    let sysfs = Sysfs::new(root);
    let net = root.join("devices/pci0000:00/0000:00:04.0/0000:01:00.0/net/eth0");
    fs::create_dir_all(&net).unwrap();
    symlink("../../../0000:01:00.0", net.join("device")).unwrap();
    symlink(root.join("bus/pci/devices/0000:01:00.0"), root.join("nic")).unwrap();
    for path in [
        "bus/pci/devices/0000:01:00.0",
        "bus/pci/devices/0000:01:00.0/",
        "devices/pci0000:00/0000:00:04.0/0000:01:00.0",
        "devices/pci0000:00/../pci0000:00/0000:00:04.0/0000:01:00.0/.",
        "devices/pci0000:00/0000:00:04.0/0000:01:00.0/net/eth0/device",
        "kernel/iommu_groups/6/devices/0000:01:00.0",
        "nic",
    ] {
        assert_eq!(
            sysfs.resolve(&root.join(path)).unwrap(),
            bdf("01:00.0"),
            "{path}"
        );
    }
    assert_eq!(sysfs.find("1:0.1").unwrap(), bdf("01:00.1"));
    let path = root.join("nic");
    assert_eq!(sysfs.find(path.to_str().unwrap()).unwrap(), bdf("01:00.0"));
}

#[test]
fn what_is_no_pci_function_is_refused() {
    let host = host();
    let root = &host.path();
    let sysfs = Sysfs::new(root);
    for path in [
        "devices/pci0000:00",
        "devices/platform/arm-smmu",
        "bus/pci/devices",
        "kernel/iommu_groups/6",
    ] {
        assert!(
            matches!(
                sysfs.resolve(&root.join(path)),
                Err(SysfsError::NotPci { .. })
            ),
            "{path}"
        );
    }
    assert!(matches!(
        sysfs.resolve(&root.join("bus/pci/devices/0000:02:00.0")),
        Err(SysfsError::NoSuchPath { .. })
    ));
    assert!(matches!(
        sysfs.find("02:00.0"),
        Err(SysfsError::NoSuchFunction { .. })
    ));
}

#[test]
fn a_directory_that_only_has_the_name_of_a_function_is_refused() {
    let host = host();
    let sysfs = Sysfs::new(host.path());
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["0000:01:00.0", "0000:77:00.0"] {
        let fake = elsewhere.path().join(name);
        fs::create_dir(&fake).unwrap();
        assert!(
            matches!(sysfs.resolve(&fake), Err(SysfsError::NotPci { .. })),
            "{name}"
        );
    }
}

#[test]
fn no_sysfs_at_all() {
    let empty = tempfile::tempdir().unwrap();
    let sysfs = Sysfs::new(empty.path());
    assert_eq!(sysfs.groups().unwrap(), []);
    assert!(matches!(
        sysfs.group_of(bdf("00:00.0")),
        Err(SysfsError::NoSuchFunction { .. })
    ));
}
