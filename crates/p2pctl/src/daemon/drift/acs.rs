//! ACS settings of the watched ports: those above devices that VFIO has, and those that a transaction holds.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use hotplug::regroup::AcsRegister;
use iommu_group::{AcsSetting, Function, Sbdf, Sysfs, Topology};

use super::snapshot::Snapshot;

/// The watched ports and their expected settings.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    /// The transaction count when the watch was made.
    pub(super) transactions: u64,
    /// The reference state of the host.
    pub(super) normal: Arc<Snapshot>,
    pub(super) ports: Vec<WatchedPort>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WatchedPort {
    pub(super) register: AcsRegister,
    /// The expected setting.
    pub(super) good: AcsSetting,
    /// Whether a transaction holds it.
    held: bool,
}

/// A deviation from the expected setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The setting has to be restored.
    PutBack(AcsSetting),
    /// The setting is stricter than expected, and the port need not be restored.
    Stricter(AcsSetting),
    /// The port is gone, or another function replaced it.
    Gone,
}

impl Watch {
    pub(super) fn new(
        transactions: u64,
        normal: Arc<Snapshot>,
        topology: &Topology,
        held: &BTreeSet<Sbdf>,
    ) -> Self {
        let ports = ports(topology, held).into_iter();
        let watched = |port: Sbdf| {
            Some(WatchedPort {
                register: AcsRegister::of(topology.get(port)?)?,
                good: *normal.acs.get(&port)?,
                held: held.contains(&port),
            })
        };
        Self {
            transactions,
            ports: ports.filter_map(watched).collect(),
            normal,
        }
    }

    /// Whether a watched port has to be restored in this snapshot.
    pub(super) fn awaits(&self, now: &Snapshot) -> bool {
        self.ports.iter().any(|port| {
            let found = now.acs.get(&port.register.port());
            let differs = found.filter(|found| **found != port.good);
            differs.is_some_and(|found| port.is_put_back(*found))
        })
    }

    pub(super) fn has(&self, port: Sbdf) -> bool {
        self.ports.iter().any(|other| other.register.port() == port)
    }
}

impl WatchedPort {
    /// The deviation of the port; `None` if there is none or if the port is suspended.
    pub(super) fn check(&self, sysfs: &Sysfs) -> Option<Found> {
        // Reading a register would wake a suspended port and all devices below it.
        if sleeps(sysfs, self.register.port()) {
            return None;
        }
        match self.register.read(sysfs) {
            None => Some(Found::Gone),
            Some(is) if is == self.good => None,
            Some(is) if self.is_put_back(is) => Some(Found::PutBack(is)),
            Some(is) => Some(Found::Stricter(is)),
        }
    }

    fn is_put_back(&self, is: AcsSetting) -> bool {
        self.held || is.is_less_strict_than(&self.good)
    }
}

fn sleeps(sysfs: &Sysfs, port: Sbdf) -> bool {
    let status = fs::read_to_string(sysfs.device_dir(port).join("power/runtime_status"));
    status.is_ok_and(|status| status.trim_end() == "suspended")
}

fn ports(topology: &Topology, held: &BTreeSet<Sbdf>) -> BTreeSet<Sbdf> {
    let all = topology.functions().iter();
    let devices = all.filter(|function| function.driver_kind().is_vfio());
    let above = devices.flat_map(|device| topology.ancestors(device.sbdf()));
    let ports = above.filter(|port| port.port_type().is_downstream());
    ports
        .map(Function::sbdf)
        .chain(held.iter().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const SWITCH: &str = include_str!("../../../../../resources/topologies/switch-four-nvme.json");

    fn at(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    fn setting(text: &str) -> AcsSetting {
        AcsSetting::new(text.parse().unwrap(), None)
    }

    /// A machine whose registers are files, and a watch over it.
    fn machine(held: &[&str]) -> (tempfile::TempDir, Sysfs, Watch) {
        let topology = Arc::new(Topology::from_fixture(SWITCH).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::new(dir.path());
        for function in topology.functions() {
            let dir = sysfs.device_dir(function.sbdf());
            fs::create_dir_all(dir.join("power")).unwrap();
            fs::write(dir.join("power/runtime_status"), "active\n").unwrap();
            let byte = |offset| function.space().u8(offset).unwrap_or_default();
            fs::write(dir.join("config"), (0..4096).map(byte).collect::<Vec<_>>()).unwrap();
        }
        let held = held.iter().map(|port| at(port)).collect();
        let normal = Arc::new(Snapshot::of(Arc::clone(&topology)));
        let watch = Watch::new(0, normal, &topology, &held);
        (dir, sysfs, watch)
    }

    #[test]
    fn ports_above_devices_of_vfio_and_those_that_are_held_matter() {
        let topology = Topology::from_fixture(SWITCH).unwrap();
        let assigned = |sbdf: Sbdf| {
            let function = topology.get(sbdf);
            function.is_some_and(|function| function.driver_kind().is_vfio())
        };
        let none = BTreeSet::new();
        let matter = ports(&topology, &none);
        for port in topology.functions() {
            let below = topology.descendants(port.sbdf());
            let expected =
                port.port_type().is_downstream() && below.map(Function::sbdf).any(assigned);
            assert_eq!(matter.contains(&port.sbdf()), expected, "{}", port.sbdf());
        }
        assert!(!matter.is_empty());
        let held = BTreeSet::from([at("0000:02:03.0")]);
        assert!(ports(&topology, &held).contains(&at("0000:02:03.0")));
    }

    #[test]
    fn another_control_or_none_is_seen_and_a_port_that_sleeps_is_not_woken() {
        let (_dir, sysfs, watch) = machine(&["02:01.0"]);
        let check = |port: &str| {
            let mut ports = watch.ports.iter();
            let watched = ports.find(|other| other.register.port() == at(port));
            watched.unwrap().check(&sysfs)
        };
        let write = |port: &str, offset: u64, control: u8| {
            let path = sysfs.device_dir(at(port)).join("config");
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&[control], offset).unwrap();
        };
        assert_eq!(check("02:00.0"), None);
        write("02:00.0", 0x156, 0x11);
        assert_eq!(check("02:00.0"), Some(Found::PutBack(setting("0011"))));
        write("02:00.0", 0x156, 0x1f);
        assert_eq!(check("02:00.0"), Some(Found::Stricter(setting("001f"))));
        // A port that a transaction holds is restored in both directions.
        write("02:01.0", 0x156, 0x1f);
        assert_eq!(check("02:01.0"), Some(Found::PutBack(setting("001f"))));
        let status = sysfs.device_dir(at("02:00.0")).join("power/runtime_status");
        fs::write(&status, "suspended\n").unwrap();
        assert_eq!(check("02:00.0"), None);
        fs::write(&status, "active\n").unwrap();
        write("02:00.0", 0, 0x87);
        assert_eq!(check("02:00.0"), Some(Found::Gone), "it is another device");
        fs::remove_dir_all(sysfs.device_dir(at("02:01.0"))).unwrap();
        assert_eq!(check("02:01.0"), Some(Found::Gone));
    }
}
