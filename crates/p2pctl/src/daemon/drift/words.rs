//! The ACS control registers of the ports that matter: those above devices that VFIO has, and those that a change of
//! our own has set and keeps awake.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use iommu_group::{AcsBits, Function, Sbdf, Sysfs, Topology};

/// Where the registers are, and what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Words(BTreeMap<PathBuf, Register>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Register {
    /// Bytes from the start of configuration space.
    offset: u16,
    word: AcsBits,
}

impl Words {
    /// What they are on a host that was just looked at as a whole.
    pub(super) fn of(topology: &Topology, sysfs: &Sysfs, held: &BTreeSet<Sbdf>) -> Self {
        let matters = ports(topology, held).into_iter();
        let registers = matters.filter_map(|port| {
            let acs = topology.get(port)?.acs().registers()?;
            let register = Register {
                offset: acs.control_offset(),
                word: acs.control,
            };
            Some((sysfs.device_dir(port), register))
        });
        Self(registers.collect())
    }

    /// Whether all of them still hold what they held. One that cannot be read does not.
    pub(super) fn hold(&self) -> bool {
        let mut all = self.0.iter();
        // To read a register would wake a port that sleeps, with all devices below it.
        all.all(|(dir, register)| sleeps(dir) || register.read(dir) == Some(register.word))
    }
}

impl Register {
    fn read(self, dir: &Path) -> Option<AcsBits> {
        let mut word = [0; 2];
        let file = File::open(dir.join("config")).ok()?;
        file.read_exact_at(&mut word, self.offset.into()).ok()?;
        Some(AcsBits::from_bits(u16::from_le_bytes(word)))
    }
}

fn sleeps(dir: &Path) -> bool {
    let status = fs::read_to_string(dir.join("power/runtime_status"));
    status.is_ok_and(|status| status.trim_end() == "suspended")
}

fn ports(topology: &Topology, held: &BTreeSet<Sbdf>) -> BTreeSet<Sbdf> {
    let all = topology.functions().iter();
    let devices = all.filter(|function| function.driver().is_some_and(is_vfio));
    let above = devices.flat_map(|device| topology.ancestors(device.sbdf()));
    let ports = above.filter(|port| port.port_type().is_downstream());
    ports
        .map(Function::sbdf)
        .chain(held.iter().copied())
        .collect()
}

/// Whether a driver is VFIO's, or one of a vendor that is made of it.
fn is_vfio(driver: &str) -> bool {
    driver.replace('-', "_").ends_with("vfio_pci")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: &str = include_str!("../../../../../resources/topologies/switch-four-nvme.json");

    fn at(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    /// A machine whose registers are files: those of the ports above the devices that VFIO has.
    fn machine() -> (tempfile::TempDir, Topology, Words) {
        let topology = Topology::from_fixture(SWITCH).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::new(dir.path());
        for function in topology.functions().iter() {
            let Some(acs) = function.acs().registers() else {
                continue;
            };
            let dir = sysfs.device_dir(function.sbdf());
            fs::create_dir_all(dir.join("power")).unwrap();
            fs::write(dir.join("power/runtime_status"), "active\n").unwrap();
            let mut config = vec![0; 4096];
            let offset = usize::from(acs.control_offset());
            config[offset..offset + 2].copy_from_slice(&acs.control.bits().to_le_bytes());
            fs::write(dir.join("config"), config).unwrap();
        }
        let words = Words::of(&topology, &sysfs, &BTreeSet::new());
        (dir, topology, words)
    }

    #[test]
    fn ports_above_devices_of_vfio_and_those_that_are_held_matter() {
        let topology = Topology::from_fixture(SWITCH).unwrap();
        let assigned = |sbdf: Sbdf| {
            let driver = topology.get(sbdf).and_then(Function::driver);
            driver.is_some_and(is_vfio)
        };
        let none = BTreeSet::new();
        let matter = ports(&topology, &none);
        for port in topology.functions().iter() {
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
    fn another_word_or_none_is_seen_and_who_sleeps_is_not_woken() {
        let (dir, _, words) = machine();
        assert!(words.hold());
        let (port, register) = words.0.first_key_value().unwrap();
        let file = fs::OpenOptions::new()
            .write(true)
            .open(port.join("config"))
            .unwrap();
        file.write_all_at(&[0, 0], register.offset.into()).unwrap();
        assert!(!words.hold());
        fs::write(port.join("power/runtime_status"), "suspended\n").unwrap();
        assert!(words.hold());
        fs::remove_dir_all(port).unwrap();
        assert!(!words.hold(), "it is gone");
        drop(dir);
    }
}
