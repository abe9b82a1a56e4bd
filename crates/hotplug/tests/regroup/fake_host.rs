//! A simulated host: a directory like sysfs, and writes that have the effects of the kernel's files.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hotplug::regroup::Host;
use iommu_group::{AcsBits, Firmware, Function, GroupModel, Kernel, Sbdf, Sysfs, Topology};
use tempfile::TempDir;

use crate::faults::{Faults, Kind};

/// A fault at a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteFault {
    /// The write fails.
    Errno(i32),
    /// The process is killed before the write.
    KilledBefore,
    /// The process is killed after the write.
    KilledAfter,
}

/// Panic payload of a killed process. It does not fail the test.
pub(crate) struct Killed;

pub(crate) struct FakeHost {
    _dir: TempDir,
    sysfs: Sysfs,
    proc: PathBuf,
    state: RefCell<State>,
    writes: Cell<usize>,
    fault: Cell<Option<(usize, WriteFault)>>,
    faults: Option<Faults>,
    /// The resets so far: function and method.
    pub(crate) resets: RefCell<Vec<String>>,
    /// Writes to devices that replaced others.
    pub(crate) strayed: RefCell<Vec<String>>,
}

struct State {
    topology: &'static Topology,
    model: GroupModel<'static>,
    /// Functions that were removed from the machine.
    gone: BTreeSet<Sbdf>,
    /// Functions that were replaced by other devices.
    replaced: BTreeSet<Sbdf>,
    /// Whether functions get other bus numbers when they are found again, and the functions that did.
    renumbers: bool,
    shown: BTreeMap<Sbdf, Sbdf>,
    /// Drivers and attributes that differ from their defaults, by function and name.
    facts: BTreeMap<(Sbdf, String), String>,
    /// Functions that have directories.
    present: BTreeSet<Sbdf>,
    /// The groups in sysfs; empty while they are incomplete.
    linked: Vec<Vec<Sbdf>>,
    /// The ACS control registers in the `config` files.
    words: BTreeMap<Sbdf, AcsBits>,
    /// The driver that binds to a function by default.
    hosts: BTreeMap<Sbdf, String>,
    kernel: Kernel,
}

/// Everything that a transaction must leave as it was or as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The groups with devices.
    pub(crate) groups: Vec<Vec<Sbdf>>,
    /// Driver, override, attributes and ACS control of each function.
    pub(crate) functions: BTreeMap<Sbdf, Vec<String>>,
    autoprobe: String,
}

impl Snapshot {
    /// The same with the devices of the groups only: ports in a group do not affect isolation.
    pub(crate) fn with_devices_only(&self) -> Self {
        let mut rest = self.clone();
        for group in &mut rest.groups {
            group.retain(|at| {
                let state = self.functions.get(at);
                !state.is_some_and(|state| state[0].contains("pcieport"))
            });
        }
        rest
    }

    /// The same without some functions.
    pub(crate) fn without(&self, lost: &BTreeSet<Sbdf>) -> Self {
        let mut rest = self.clone();
        rest.functions.retain(|at, _| !lost.contains(at));
        for group in &mut rest.groups {
            group.retain(|at| !lost.contains(at));
        }
        let is_port = |at: &Sbdf| {
            let facts = self.functions.get(at);
            facts.is_some_and(|facts| facts[0].contains("pcieport"))
        };
        rest.groups.retain(|group| !group.iter().all(is_port));
        rest
    }

    /// The differences from another snapshot, one per line.
    pub(crate) fn differences(&self, there: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let own = self.groups.iter().filter(|g| !there.groups.contains(g));
        lines.extend(own.map(|group| format!("group {group:?}")));
        let theirs = there.groups.iter().filter(|g| !self.groups.contains(g));
        lines.extend(theirs.map(|group| format!("no group {group:?}")));
        for (function, facts) in &self.functions {
            let other = there.functions.get(function);
            if other != Some(facts) {
                lines.push(format!("{function} {facts:?}, not {other:?}"));
            }
        }
        if self.functions.len() != there.functions.len() || self.autoprobe != there.autoprobe {
            lines.push(format!(
                "{} functions, autoprobe {}",
                self.functions.len(),
                self.autoprobe
            ));
        }
        lines
    }
}

impl State {
    /// The current address of a function.
    fn shown(&self, function: Sbdf) -> Sbdf {
        self.shown.get(&function).copied().unwrap_or(function)
    }

    /// The function with a current address.
    fn named(&self, shown: Sbdf) -> Sbdf {
        let mut all = self.shown.iter();
        let found = all.find(|(_, other)| **other == shown);
        found.map_or(shown, |(function, _)| *function)
    }

    fn appear(&mut self, function: Sbdf) {
        self.present.insert(function);
        let is_end = !self.topology.get(function).unwrap().is_bridge();
        if self.renumbers && is_end && self.topology.upstream(function).is_some() {
            let text = function.to_string().replacen("0000:0", "0000:4", 1);
            self.shown.insert(function, text.parse().unwrap());
        }
    }
}

/// The topology of a fixture file. Each topology is leaked once.
fn topology_of(text: String) -> &'static Topology {
    static KNOWN: Mutex<BTreeMap<String, &'static Topology>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap();
    known.entry(text).or_insert_with_key(|text| {
        let topology = Topology::from_fixture(text).unwrap();
        Box::leak(Box::new(topology))
    })
}

impl FakeHost {
    /// A machine of `resources/topologies`, with all endpoints bound to vfio-pci by an override.
    ///
    /// `change` may edit the file before it is parsed.
    pub(crate) fn new(
        fixture: &str,
        release: &str,
        change: impl FnOnce(&mut serde_json::Value),
    ) -> Self {
        // Fuzz targets share this file.
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let mut files = package.map(|dir| dir.join("resources/topologies").join(fixture));
        let text = fs::read_to_string(files.find(|file| file.exists()).unwrap()).unwrap();
        let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
        document["host"]["kernel_release"] = release.into();
        change(&mut document);
        let topology = topology_of(document.to_string());
        let kernel = Kernel::of(topology);
        let dir = crate::memory_dir();
        let (sys, proc) = (dir.path().join("sys"), dir.path().join("proc"));
        for path in ["bus/pci/devices", "bus/pci/drivers", "class/iommu/dmar0"] {
            fs::create_dir_all(sys.join(path)).unwrap();
        }
        for driver in ["pcieport", "vfio-pci", "nvme", "pci-stub"] {
            fs::create_dir_all(sys.join("bus/pci/drivers").join(driver)).unwrap();
        }
        fs::write(sys.join("bus/pci/drivers_probe"), "").unwrap();
        fs::write(sys.join("bus/pci/drivers_autoprobe"), "1\n").unwrap();
        fs::create_dir_all(proc.join("sys/kernel/random")).unwrap();
        fs::create_dir_all(proc.join("self")).unwrap();
        fs::write(proc.join("sys/kernel/osrelease"), release).unwrap();
        fs::write(proc.join("sys/kernel/random/boot_id"), "first\n").unwrap();
        fs::write(proc.join("cmdline"), "intel_iommu=on\n").unwrap();
        let state = State {
            topology,
            model: GroupModel::as_found(topology, &kernel),
            gone: BTreeSet::new(),
            replaced: BTreeSet::new(),
            renumbers: false,
            shown: BTreeMap::new(),
            facts: BTreeMap::new(),
            present: BTreeSet::new(),
            linked: Vec::new(),
            words: BTreeMap::new(),
            hosts: BTreeMap::new(),
            kernel,
        };
        let host = Self {
            _dir: dir,
            sysfs: Sysfs::new(sys),
            proc,
            state: RefCell::new(state),
            writes: Cell::new(0),
            fault: Cell::new(None),
            faults: None,
            resets: RefCell::new(Vec::new()),
            strayed: RefCell::new(Vec::new()),
        };
        for function in topology.functions() {
            host.create(function);
            if function.is_bridge() {
                host.link_driver(function.sbdf(), "pcieport");
            } else if topology.upstream(function.sbdf()).is_some() {
                let at = function.sbdf();
                host.set(at, "driver_override", "vfio-pci");
                host.link_driver(at, "vfio-pci");
                host.set(at, "d3cold_allowed", "0");
                let mut state = host.state.borrow_mut();
                state.hosts.insert(at, "nvme".to_owned());
            }
        }
        host.link_groups();
        host
    }

    pub(crate) fn dir(&self, function: Sbdf) -> PathBuf {
        self.sysfs.device_dir(self.state.borrow().shown(function))
    }

    pub(crate) fn proc_dir(&self) -> &Path {
        &self.proc
    }

    pub(crate) fn topology(&self) -> Topology {
        let host = iommu_group::Host::read(&self.proc, &self.sysfs);
        Topology::scan(&self.sysfs, host).unwrap()
    }

    /// Injects a fault at the `at`th write from now, counted from 0.
    pub(crate) fn fail(&self, at: usize, fault: WriteFault) {
        self.writes.set(0);
        self.fault.set(Some((at, fault)));
    }

    /// Uses this fault injection from now on.
    pub(crate) fn watch(&mut self, faults: &Faults) {
        self.faults = Some(faults.clone());
        self.note();
    }

    /// Reports the state of the host to the fault injection.
    fn note(&self) {
        if let Some(faults) = &self.faults {
            let state = self.state.borrow();
            let autoprobe = fs::read(self.sysfs.root().join("bus/pci/drivers_autoprobe"));
            let host = format!(
                "{:?} {:?} {:?} {:?} {:?} {} {:?} {:?}",
                state.facts,
                state.words,
                state.gone,
                state.replaced,
                state.shown,
                state.renumbers,
                state.linked,
                autoprobe.ok()
            );
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(&host, &mut hasher);
            faults.set_host(std::hash::Hasher::finish(&hasher));
        }
    }

    /// Whether the fault has occurred; clears it.
    pub(crate) fn failed(&self) -> bool {
        let (at, _) = self.fault.take().unwrap();
        self.writes.get() > at
    }

    /// Number of writes since the fault was set.
    pub(crate) fn written(&self) -> usize {
        self.writes.get()
    }

    /// Writes an ACS control register as another program would.
    pub(crate) fn meddle(&self, port: Sbdf, word: u16) {
        let word = AcsBits::from_bits_retain(word);
        self.state.borrow_mut().model.set_acs_control(port, word);
        self.link_groups();
    }

    pub(crate) fn set(&self, function: Sbdf, name: &str, value: &str) {
        fs::write(self.dir(function).join(name), format!("{value}\n")).unwrap();
        self.know(function, name, value);
    }

    fn know(&self, function: Sbdf, name: &str, value: &str) {
        let key = (function, name.to_owned());
        self.state.borrow_mut().facts.insert(key, value.to_owned());
    }

    pub(crate) fn get(&self, function: Sbdf, name: &str) -> String {
        let text = fs::read_to_string(self.dir(function).join(name)).unwrap_or_default();
        text.trim().to_owned()
    }

    pub(crate) fn driver(&self, function: Sbdf) -> Option<String> {
        self.sysfs.driver_of(self.shown(function)).unwrap()
    }

    /// Removes a function from the machine for good.
    pub(crate) fn pull(&self, function: Sbdf) {
        self.state.borrow_mut().gone.insert(function);
        if self.dir(function).exists() {
            self.delete(function);
            self.link_groups();
        }
        self.note();
    }

    /// Replaces a function by another device.
    pub(crate) fn replace(&self, function: Sbdf) {
        self.state.borrow_mut().replaced.insert(function);
        if self.dir(function).exists() {
            self.rename(function);
        }
        self.note();
    }

    /// Gives endpoints other bus numbers when they are found again.
    pub(crate) fn renumber(&self) {
        self.state.borrow_mut().renumbers = true;
        self.note();
    }

    /// The current address of the function with this original address.
    fn shown(&self, function: Sbdf) -> Sbdf {
        self.state.borrow().shown(function)
    }

    /// Gives a function the IDs of another device.
    fn rename(&self, function: Sbdf) {
        let path = self.dir(function).join("config");
        let config = fs::OpenOptions::new().write(true).open(path).unwrap();
        config.write_all_at(&[0x34, 0x12, 0x78, 0x56], 0).unwrap();
    }

    /// Reboots the machine.
    pub(crate) fn reboot(&self) {
        let topology = self.state.borrow().topology;
        for function in topology.functions() {
            if self.dir(function.sbdf()).exists() {
                self.delete(function.sbdf());
            }
        }
        {
            let mut state = self.state.borrow_mut();
            state.model = GroupModel::booted(topology, &state.kernel, Firmware::Cleared);
        }
        fs::write(self.sysfs.root().join("bus/pci/drivers_autoprobe"), "1\n").unwrap();
        fs::write(self.proc.join("sys/kernel/random/boot_id"), "second\n").unwrap();
        self.appear();
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let now = self.topology();
        let named = |at: Sbdf| self.state.borrow().named(at);
        let functions = now.functions().iter().map(|function| {
            let at = named(function.sbdf());
            let mut facts = vec![format!("{:?}", function.driver())];
            for name in [
                "driver_override",
                "power/control",
                "d3cold_allowed",
                "reset_method",
                "sriov_numvfs",
            ] {
                facts.push(self.get(at, name));
            }
            let acs = function.acs().registers();
            facts.push(acs.map_or(String::new(), |acs| format!("{:04x}", acs.control)));
            (at, facts)
        });
        let mut groups = iommu_group::Groups::found(&now).groups().to_vec();
        let is_device = |at: &Sbdf| !now.get(*at).unwrap().is_bridge();
        groups.retain(|group| group.iter().any(is_device));
        for group in &mut groups {
            group.iter_mut().for_each(|at| *at = named(*at));
            group.sort_unstable();
        }
        Snapshot {
            groups,
            functions: functions.collect(),
            autoprobe: fs::read_to_string(self.sysfs.root().join("bus/pci/drivers_autoprobe"))
                .unwrap(),
        }
    }

    /// Creates the directory of a function, as the kernel does when it finds it.
    fn create(&self, function: &Function) {
        let at = function.sbdf();
        self.state.borrow_mut().appear(at);
        let state = self.state.borrow();
        let dir = self.real_dir(&state, at);
        let above = dir.parent().unwrap().to_owned();
        fs::create_dir_all(dir.join("power")).unwrap();
        symlink(&dir, self.sysfs.device_dir(state.shown(at))).unwrap();
        let mut config = vec![0; usize::from(function.space().visible())];
        for (offset, bytes) in function.space().runs() {
            let offset = usize::from(offset);
            config[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        fs::write(dir.join("config"), config).unwrap();
        for (name, value) in [
            ("driver_override", "(null)"),
            ("power/control", "on"),
            ("d3cold_allowed", "1"),
            ("reset_method", "flr bus"),
            ("sriov_numvfs", "0"),
            ("sriov_drivers_autoprobe", "1"),
        ] {
            fs::write(dir.join(name), format!("{value}\n")).unwrap();
        }
        if state.replaced.contains(&at) {
            self.rename(at);
        }
        if let Some(physical) = function.physical_function() {
            symlink(above.join(physical.to_string()), dir.join("physfn")).unwrap();
            fs::write(dir.join("vendor"), "0x1b36\n").unwrap();
            fs::write(dir.join("device"), "0x0010\n").unwrap();
            fs::write(dir.join("class"), "0x010802\n").unwrap();
        }
        if let Some(bus) = function.secondary_bus() {
            let bus = dir.join(format!("pci_bus/0000:{bus:02x}"));
            fs::create_dir_all(&bus).unwrap();
            fs::write(dir.join("reset_subordinate"), "").unwrap();
        }
    }

    fn delete(&self, function: Sbdf) {
        let state = &mut *self.state.borrow_mut();
        let below = state.topology.descendants(function).map(Function::sbdf);
        for at in below.chain([function]) {
            if state.present.remove(&at) {
                fs::remove_file(self.sysfs.device_dir(state.shown(at))).unwrap();
            }
            state.words.remove(&at);
            state.facts.retain(|(function, _), _| *function != at);
            for group in &mut state.linked {
                if group.contains(&at) {
                    group.clear();
                }
            }
        }
        fs::remove_dir_all(self.real_dir(state, function)).unwrap();
    }

    /// The directory of a function in sysfs's device tree.
    fn real_dir(&self, state: &State, function: Sbdf) -> PathBuf {
        let above = state.topology.ancestors(function).map(Function::sbdf);
        let mut way: Vec<Sbdf> = above.collect();
        way.insert(0, function);
        let root = self.sysfs.root().join("devices/pci0000:00");
        let way = way.iter().rev();
        way.fold(root, |dir, at| dir.join(state.shown(*at).to_string()))
    }

    fn link_driver(&self, function: Sbdf, driver: &str) {
        let target = self.sysfs.root().join("bus/pci/drivers").join(driver);
        symlink(&target, self.dir(function).join("driver")).unwrap();
        self.know(function, "driver", driver);
        fs::write(target.join("unbind"), "").unwrap();
        // Both drivers let their functions sleep.
        if matches!(driver, "pcieport" | "vfio-pci") {
            self.set(function, "power/control", "auto");
        }
    }

    /// Updates links and registers from the model.
    fn link_groups(&self) {
        let state = &mut *self.state.borrow_mut();
        let groups = self.sysfs.root().join("kernel/iommu_groups");
        let mut now = state.model.groups().groups().to_vec();
        for group in &mut now {
            group.retain(|at| state.present.contains(at));
        }
        for (number, group) in now.iter().enumerate() {
            if state.linked.get(number) == Some(group) {
                continue;
            }
            let own = groups.join(number.to_string());
            drop(fs::remove_dir_all(&own));
            let devices = own.join("devices");
            fs::create_dir_all(&devices).unwrap();
            for function in group {
                let dir = self.real_dir(state, *function);
                drop(fs::remove_file(dir.join("iommu_group")));
                symlink(&own, dir.join("iommu_group")).unwrap();
                symlink(&dir, devices.join(state.shown(*function).to_string())).unwrap();
            }
        }
        for number in now.len()..state.linked.len() {
            drop(fs::remove_dir_all(groups.join(number.to_string())));
        }
        state.linked = now;
        for at in state.present.iter().copied() {
            let acs = state.topology.get(at).and_then(|f| f.acs().registers());
            let (Some(acs), Some(control)) = (acs, state.model.acs_control(at)) else {
                continue;
            };
            if state.words.insert(at, control) == Some(control) {
                continue;
            }
            let config = fs::OpenOptions::new()
                .write(true)
                .open(self.real_dir(state, at).join("config"))
                .unwrap();
            let bytes = control.bits().to_le_bytes();
            config
                .write_all_at(&bytes, u64::from(acs.control_offset()))
                .unwrap();
        }
    }

    /// Creates the missing directories of functions, and binds drivers to them.
    fn appear(&self) {
        let topology = self.state.borrow().topology;
        let mut found = Vec::new();
        for function in topology.functions() {
            let at = function.sbdf();
            let gone = {
                let state = self.state.borrow();
                state.gone.contains(&at)
                    || topology
                        .ancestors(at)
                        .any(|above| state.gone.contains(&above.sbdf()))
            };
            if gone {
                self.state.borrow_mut().model.remove(at);
            } else if self.state.borrow().model.is_present(at) && !self.dir(at).exists() {
                self.create(function);
                found.push(at);
            }
        }
        self.link_groups();
        let text = fs::read_to_string(self.sysfs.root().join("bus/pci/drivers_autoprobe"));
        let rules = self.state.borrow().kernel.rules;
        if text.unwrap().trim() != "0" || !rules.autoprobe_holds_on_rescan() {
            for at in found {
                self.probe(at);
            }
        }
    }

    fn probe(&self, at: Sbdf) {
        if self.driver(at).is_some() {
            return;
        }
        let topology = self.state.borrow().topology;
        let wanted = self.get(at, "driver_override");
        let driver = if wanted != "(null)" && !wanted.is_empty() {
            Some(wanted)
        } else if topology.get(at).unwrap().is_bridge() {
            Some("pcieport".to_owned())
        } else {
            self.state.borrow().hosts.get(&at).cloned()
        };
        if let Some(driver) = driver {
            self.link_driver(at, &driver);
            let mut state = self.state.borrow_mut();
            if state.kernel.rules.bind_sets_acs()
                && let Some(word) = state.model.acs_control_if_set_up(at)
            {
                state.model.set_acs_control(at, word);
            }
        }
        self.link_groups();
    }

    /// A port that may sleep does so if nothing below it has a driver. When it wakes, it has the kernel's ACS.
    fn sleep(&self) {
        let topology = self.state.borrow().topology;
        let mut forgot = false;
        for port in topology.functions().iter().filter(|f| f.is_bridge()) {
            let at = port.sbdf();
            let present = |at: Sbdf| self.dir(at).exists();
            let busy = topology
                .descendants(at)
                .filter(|f| !f.is_bridge() && present(f.sbdf()))
                .any(|f| self.driver(f.sbdf()).is_some());
            if present(at) && !busy && self.get(at, "power/control") == "auto" {
                let mut state = self.state.borrow_mut();
                let word = state.model.acs_control_if_set_up(at);
                if let Some(word) = word.filter(|_| state.model.acs_control(at) != word) {
                    state.model.set_acs_control(at, word);
                    forgot = true;
                }
            }
        }
        if forgot {
            self.link_groups();
        }
    }

    fn act(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let missing = || io::Error::from_raw_os_error(19);
        let text = String::from_utf8_lossy(bytes).trim().to_owned();
        let name = path.strip_prefix(self.sysfs.root()).unwrap();
        let name = name.to_str().unwrap();
        if name == "bus/pci/drivers_probe" {
            let at = self.state.borrow().named(text.parse().unwrap());
            if !self.dir(at).exists() {
                return Err(missing());
            }
            self.probe(at);
            return Ok(());
        }
        if name == "bus/pci/drivers_autoprobe" {
            return fs::write(path, format!("{text}\n"));
        }
        let rest = name.strip_prefix("bus/pci/devices/").unwrap();
        let (function, file) = rest.split_once('/').unwrap();
        let at = self.state.borrow().named(function.parse().unwrap());
        // Write-only attributes have no file here.
        let is_order = ["reset", "remove"].contains(&file) || file.ends_with("rescan");
        if !is_order && !path.exists() || !self.dir(at).exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        // A scan does not write to existing functions.
        if self.state.borrow().replaced.contains(&at) && !file.ends_with("rescan") {
            self.strayed.borrow_mut().push(format!("{at} {file}"));
        }
        let mut relink = false;
        match file {
            "remove" => {
                self.delete(at);
                self.state.borrow_mut().model.remove(at);
                self.link_groups();
            }
            "driver/unbind" => {
                fs::remove_file(self.dir(at).join("driver"))?;
                self.know(at, "driver", "");
                self.set(at, "sriov_numvfs", "0");
                self.set(at, "power/control", "on");
            }
            "config" => {
                let topology = self.state.borrow().topology;
                let acs = topology.get(at).unwrap().acs().registers().unwrap();
                assert_eq!(offset, u64::from(acs.control_offset()), "unexpected write");
                let word = u16::from_le_bytes(bytes.try_into().unwrap());
                let word = AcsBits::from_bits_retain(word);
                self.state.borrow_mut().model.set_acs_control(at, word);
                self.link_groups();
            }
            "sriov_numvfs" if self.driver(at).is_none() => {
                return Err(io::ErrorKind::NotFound.into());
            }
            "reset" => {
                let methods = self.get(at, "reset_method");
                let method = methods.split(' ').next().unwrap();
                self.resets.borrow_mut().push(format!("{at} {method}"));
            }
            "reset_subordinate" => {
                self.resets.borrow_mut().push(format!("below {at}"));
                let state = &mut *self.state.borrow_mut();
                for below in state.topology.descendants(at).map(Function::sbdf) {
                    if let Some(word) = state.model.acs_control_if_set_up(below) {
                        state.model.set_acs_control(below, word);
                    }
                }
                relink = true;
            }
            "driver_override" if text.is_empty() => self.set(at, file, "(null)"),
            "driver_override"
            | "power/control"
            | "d3cold_allowed"
            | "reset_method"
            | "sriov_numvfs"
            | "sriov_drivers_autoprobe" => {
                self.set(at, file, &text);
            }
            _ if file.ends_with("rescan") => {
                self.state.borrow_mut().model.rescan();
                self.appear();
            }
            _ => panic!("unexpected write to {file}"),
        }
        if relink {
            self.link_groups();
        }
        Ok(())
    }
}

impl Host for FakeHost {
    fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    fn proc(&self) -> &Path {
        &self.proc
    }

    fn write(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(faults) = &self.faults {
            let name = path
                .strip_prefix(self.sysfs.root())
                .unwrap()
                .to_str()
                .unwrap();
            if faults.step(Kind::Host, name).is_some() {
                // EIO, EBUSY, ENODEV.
                let errno = [5, 16, 19][faults.steps() % 3];
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        let number = self.writes.get();
        self.writes.set(number + 1);
        let fault = self.fault.get().filter(|(at, _)| *at == number);
        match fault.map(|(_, fault)| fault) {
            Some(WriteFault::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(WriteFault::KilledBefore) => std::panic::resume_unwind(Box::new(Killed)),
            Some(WriteFault::KilledAfter) | None => {}
        }
        self.act(path, offset, bytes)?;
        self.sleep();
        self.note();
        if matches!(fault, Some((_, WriteFault::KilledAfter))) {
            std::panic::resume_unwind(Box::new(Killed));
        }
        Ok(())
    }
}
