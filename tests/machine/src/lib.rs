//! Hosts for tests.
//!
//! A [`Machine`] is a list of PCI functions with configuration spaces, BARs, IOMMU groups and drivers. There are two ways
//! to describe one:
//!
//! - [`Machine::new`] reads an indented list. It takes addresses and groups as they are written, also impossible ones.
//! - [`Builder`] takes functions one by one, and assigns bus numbers, addresses and groups like firmware and Linux.
//!
//! A machine is read as a [`Topology`], written as a dump ([`Machine::fixture`]), or written as the tree that Linux shows
//! in `/sys` and `/proc` ([`Machine::write`]). [`hosts`] has the machines of `resources/topologies`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

mod builder;
pub mod config;
mod dump;
mod function;
pub mod hosts;
pub mod random;
mod sysfs;
#[cfg(test)]
mod tests;
mod text;

use iommu_group::{Firmware, GroupModel, Host, Kernel, Sbdf, Sysfs, Topology};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use builder::{Builder, Node, Parent, Root};
pub use function::{
    BarKind, Function, GIB, Group, Kind, MIB, Virtual, downstream, host_bridge, root_port, upstream,
};

/// A host for tests.
#[derive(Debug, Clone)]
pub struct Machine {
    functions: Vec<Placed>,
    /// The part `host` of a dump.
    host: Value,
}

/// A BAR with its address on the bus.
#[derive(Debug, Clone, Copy)]
struct PlacedBar {
    index: u16,
    kind: BarKind,
    address: u64,
    size: u64,
}

/// A function with its address and resources.
#[derive(Debug, Clone)]
struct Placed {
    function: Function,
    sbdf: Sbdf,
    /// Directory of the parent, below `/sys/devices`.
    dir: String,
    numa: i32,
    multifunction: bool,
    link_up: bool,
    physical: Option<Sbdf>,
    /// Secondary and subordinate bus of a bridge.
    buses: Option<(u8, u8)>,
    bars: Vec<PlacedBar>,
    /// Bridge windows: first address, and the address after the last one.
    window: Option<(u64, u64)>,
    prefetch_window: Option<(u64, u64)>,
    /// Address of BAR 0 of the first virtual function.
    virtual_bars: Option<u64>,
    group: Option<u32>,
    /// What the CPU adds to an address on the bus.
    cpu_offset: u64,
    /// Number of bytes of the configuration space that can be read.
    visible: usize,
}

impl Placed {
    /// A function of which only the address is known.
    fn new(function: Function, sbdf: Sbdf, dir: String) -> Self {
        let visible = function.kind.space();
        Self {
            function,
            sbdf,
            dir,
            numa: -1,
            multifunction: false,
            link_up: false,
            physical: None,
            buses: None,
            bars: Vec::new(),
            window: None,
            prefetch_window: None,
            virtual_bars: None,
            group: None,
            cpu_offset: 0,
            visible,
        }
    }

    /// The readable bytes of the configuration space.
    fn config(&self) -> Vec<u8> {
        let mut bytes = config::bytes(self);
        bytes.truncate(self.visible);
        bytes
    }

    /// The lines of the file `resource` that are not zero: number, first and last address, flags.
    fn resources(&self) -> Vec<(u16, u64, u64, u64)> {
        let offset = self.cpu_offset;
        let line = |number, start, size, flags| {
            let start = start + offset;
            (number, start, start + size - 1, flags)
        };
        let bars = self.bars.iter();
        let mut lines: Vec<_> = bars
            .map(|bar| line(bar.index, bar.address, bar.size, bar.kind.flags()))
            .collect();
        if let (Some(start), Some(all)) = (self.virtual_bars, self.function.virtual_functions) {
            let size = all.bar_size * u64::from(all.count);
            lines.push(line(7, start, size, BarKind::Prefetchable64.flags()));
        }
        let windows = [
            (14, self.window, 0x0000_0200),
            (15, self.prefetch_window, 0x0010_2201),
        ];
        for (number, window, flags) in windows {
            lines.extend(window.map(|(start, end)| line(number, start, end - start, flags)));
        }
        lines
    }

    /// Whether the kernel has to say which device this is, because the configuration space does not.
    fn hides_ids(&self) -> bool {
        self.physical.is_some() || self.function.dead
    }
}

impl Machine {
    /// A machine that is described by an indented list:
    ///
    /// ```text
    /// 00:04.0 root-port acs=5f/1d mf
    ///   01:00.0 upstream
    ///     02:00.0 downstream acs=5f/1d
    ///       03:00.0 endpoint id=1b36:0010 driver=nvme group=6
    /// ```
    ///
    /// A function is below the line above it that has less indentation. A line `pci10000:e0` below a function is a root
    /// bus that the function provides. Numbers are hexadecimal, except those of groups and NUMA nodes.
    ///
    /// # Panics
    ///
    /// If the list has errors.
    pub fn new(text: &str) -> Self {
        Self {
            functions: text::parse(text),
            host: json!({ "kernel_release": "7.2.12", "iommu": "intel" }),
        }
    }

    /// Sets the kernel release.
    #[must_use]
    pub fn kernel(mut self, release: &str) -> Self {
        self.host["kernel_release"] = json!(release);
        self
    }

    /// Sets the kernel's command line.
    #[must_use]
    pub fn arguments(mut self, arguments: &str) -> Self {
        self.host["kernel_arguments"] = arguments.split_whitespace().collect();
        self
    }

    /// Sets the CPU.
    #[must_use]
    pub fn cpu(mut self, vendor: &str, family: u32) -> Self {
        self.host["cpu"] = json!({ "vendor": vendor, "family": family });
        self
    }

    /// Sets the IOMMU: `intel`, `amd`, `none`.
    #[must_use]
    pub fn iommu(mut self, kind: &str) -> Self {
        self.host["iommu"] = json!(kind);
        self
    }

    /// The machine as it is read without root: 64 bytes of each configuration space.
    #[must_use]
    pub fn unprivileged(mut self) -> Self {
        for function in &mut self.functions {
            function.visible = 64;
        }
        self
    }

    /// Facts about the host, other than its functions.
    ///
    /// # Panics
    ///
    /// If a fact has an unknown value.
    pub fn host(&self) -> Host {
        serde_json::from_value(self.host.clone()).unwrap()
    }

    /// The machine with the first functions only, in the order in which Linux adds them.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.functions.truncate(count);
        self
    }

    /// Number of functions.
    pub fn functions(&self) -> usize {
        self.functions.len()
    }

    /// The readable bytes of the configuration space of a function.
    ///
    /// # Panics
    ///
    /// If there is no such function.
    pub fn config(&self, sbdf: Sbdf) -> Vec<u8> {
        let mut all = self.functions.iter();
        all.find(|placed| placed.sbdf == sbdf).unwrap().config()
    }

    /// The machine as it is described.
    ///
    /// # Panics
    ///
    /// If the description has errors.
    pub fn topology(&self) -> Topology {
        Topology::from_fixture(&self.fixture()).unwrap()
    }

    /// The machine with the groups that Linux makes of it at boot. ACS controls stay as described.
    ///
    /// # Panics
    ///
    /// If the description has errors.
    pub fn started(&self) -> Topology {
        let bare = self.topology();
        let groups = GroupModel::booted(&bare, &Kernel::of(&bare), Firmware::AsFound).groups();
        let mut machine = self.clone();
        for function in &mut machine.functions {
            let mut all = groups.groups().iter();
            let number = all.position(|group| group.contains(&function.sbdf));
            function.group = number.and_then(|number| u32::try_from(number).ok());
        }
        machine.topology()
    }

    /// The machine as a scan of its tree finds it.
    ///
    /// # Panics
    ///
    /// If the scan fails.
    pub fn scanned(&self) -> Topology {
        let dir = self.tree();
        Topology::scan(&Sysfs::new(dir.path().join("sys")), self.host()).unwrap()
    }

    /// A directory, in memory if possible, with `sys` and `proc` of the machine.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn tree(&self) -> TempDir {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        self.write(dir.path()).unwrap();
        dir
    }
}

/// The address that a text names.
///
/// # Panics
///
/// If it is no address.
pub fn bdf(text: &str) -> Sbdf {
    text.parse().unwrap()
}
