//! A host as files: the sysfs tree of a fixture, with registers that can be written.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use iommu_group::{Function, Sbdf, Topology};

/// A switch below a root port, with a drive below each of its four ports. Each port has ACS with control 001d.
const SWITCH: &str = include_str!("../../../../../../resources/topologies/switch-four-nvme.json");

/// Where the ACS control register of each port of the fixture is.
const CONTROL: u64 = 0x156;

pub(super) fn at(text: &str) -> Sbdf {
    text.parse().unwrap()
}

pub(super) struct TestHost {
    dir: tempfile::TempDir,
    topology: Topology,
}

impl TestHost {
    pub(super) fn new() -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
            topology: Topology::from_fixture(SWITCH).unwrap(),
        };
        let random = host.dir.path().join("proc/sys/kernel/random");
        fs::create_dir_all(&random).unwrap();
        fs::write(random.join("boot_id"), "this boot\n").unwrap();
        for function in host.topology.functions() {
            host.add(function.sbdf());
        }
        host
    }

    pub(super) fn sysfs(&self) -> PathBuf {
        self.dir.path().join("sys")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn function_dir(&self, function: Sbdf) -> PathBuf {
        self.sysfs()
            .join("bus/pci/devices")
            .join(function.to_string())
    }

    /// Plugs a function of the fixture into the host.
    pub(super) fn add(&self, function: Sbdf) {
        let found = self.topology.get(function).unwrap();
        // As a whole, or a reader could find half of it.
        let dir = self.sysfs().join("adding");
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(self.function_dir(function).parent().unwrap()).unwrap();
        fs::write(dir.join("config"), config(found)).unwrap();
        if let Some(driver) = found.driver() {
            symlink(Path::new("../drivers").join(driver), dir.join("driver")).unwrap();
        }
        if let Some(group) = found.group() {
            symlink(
                Path::new("../iommu_groups").join(group.to_string()),
                dir.join("iommu_group"),
            )
            .unwrap();
        }
        fs::rename(dir, self.function_dir(function)).unwrap();
    }

    /// Takes a function out of the host.
    pub(super) fn remove(&self, function: Sbdf) {
        let gone = self.sysfs().join("gone");
        fs::rename(self.function_dir(function), &gone).unwrap();
        fs::remove_dir_all(gone).unwrap();
    }

    /// Moves a function to another IOMMU group.
    pub(super) fn set_group(&self, function: Sbdf, group: &str) {
        let (new, link) = (
            self.sysfs().join("link"),
            self.function_dir(function).join("iommu_group"),
        );
        symlink(Path::new("../iommu_groups").join(group), &new).unwrap();
        fs::rename(new, link).unwrap();
    }

    pub(super) fn acs(&self, port: &str) -> u16 {
        let mut control = [0; 2];
        let file = fs::File::open(self.function_dir(at(port)).join("config")).unwrap();
        file.read_exact_at(&mut control, CONTROL).unwrap();
        u16::from_le_bytes(control)
    }

    /// Egress control is implemented and on, and stops requests to these ports, by number.
    pub(super) fn set_egress(&self, port: &str, vector: u32) {
        // All seven bits, and a vector of 32 ports (PCIe r6.0 §7.7.11.2).
        self.write(port, CONTROL - 2, &0x207f_u16.to_le_bytes());
        self.write(port, CONTROL + 2, &vector.to_le_bytes());
        self.set_acs(port, 0x31);
    }

    pub(super) fn egress(&self, port: &str) -> u32 {
        let mut vector = [0; 4];
        let file = fs::File::open(self.function_dir(at(port)).join("config")).unwrap();
        file.read_exact_at(&mut vector, CONTROL + 2).unwrap();
        u32::from_le_bytes(vector)
    }

    fn write(&self, port: &str, offset: u64, bytes: &[u8]) {
        let path = self.function_dir(at(port)).join("config");
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    pub(super) fn set_acs(&self, port: &str, control: u16) {
        self.write(port, CONTROL, &control.to_le_bytes());
    }
}

fn config(function: &Function) -> Vec<u8> {
    let space = function.space();
    (0..4096)
        .map(|offset| space.u8(offset).unwrap_or_default())
        .collect()
}

/// Waits until something is so, at most so long; how long it took.
pub(super) fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    started.elapsed()
}
