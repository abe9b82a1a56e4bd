//! Machines for tests, written as an indented list of functions.
//!
//! ```text
//! 00:04.0 root-port acs=5f/1d mf
//!   01:00.0 upstream
//!     02:00.0 downstream acs=5f/1d
//!       03:00.0 endpoint id=1b36:0010 driver=nvme group=6
//! ```
//! Indentation says what is below what; a line `pci10000:e0` below a function is a root bus that it provides.
//! The machine can be had as a [`Topology`] or as a directory in the shape of sysfs.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use iommu_group::{Firmware, GroupModel, Host, Kernel, Sbdf, Sysfs, Topology};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A function or a root bus of a machine.
#[derive(Debug, Clone)]
struct Line {
    depth: usize,
    name: String,
    kind: String,
    options: BTreeMap<String, String>,
}

impl Line {
    fn parse(text: &str) -> Self {
        let depth = text.len() - text.trim_start().len();
        let mut words = text.split_whitespace();
        let name = words.next().unwrap();
        let name = match name.parse::<Sbdf>() {
            Ok(sbdf) => sbdf.to_string(),
            Err(_) => name.to_owned(),
        };
        Self {
            depth,
            name,
            kind: words.next().unwrap_or("").to_owned(),
            options: words
                .map(|word| {
                    let (key, value) = word.split_once('=').unwrap_or((word, ""));
                    (key.to_owned(), value.to_owned())
                })
                .collect(),
        }
    }

    fn has(&self, option: &str) -> bool {
        self.options.contains_key(option)
    }

    fn text(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(String::as_str)
    }

    fn hex(&self, option: &str) -> Option<u64> {
        self.text(option).map(hex)
    }

    fn is_root_bus(&self) -> bool {
        self.name.starts_with("pci")
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("`{text}` is not hexadecimal"))
}

fn pair(text: &str, at: char) -> (u64, u64) {
    let (a, b) = text.split_once(at).unwrap();
    (hex(a), hex(b))
}

/// A machine for tests.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    lines: Vec<Line>,
    host: Value,
}

impl Machine {
    pub(crate) fn new(text: &str) -> Self {
        Self {
            lines: text
                .lines()
                .filter(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
                .map(Line::parse)
                .collect(),
            host: json!({ "kernel_release": "7.2.12", "iommu": "intel" }),
        }
    }

    pub(crate) fn kernel(mut self, release: &str) -> Self {
        self.host["kernel_release"] = json!(release);
        self
    }

    pub(crate) fn arguments(mut self, arguments: &str) -> Self {
        self.host["kernel_arguments"] = arguments.split_whitespace().collect();
        self
    }

    pub(crate) fn cpu(mut self, vendor: &str, family: u32) -> Self {
        self.host["cpu"] = json!({ "vendor": vendor, "family": family });
        self
    }

    pub(crate) fn iommu(mut self, kind: &str) -> Self {
        self.host["iommu"] = json!(kind);
        self
    }

    /// The line that a line is below.
    fn above(&self, index: usize) -> Option<&Line> {
        let depth = self.lines[index].depth;
        self.lines[..index]
            .iter()
            .rev()
            .find(|line| line.depth < depth)
    }

    /// The name of the parent of a function, and the function that provides its root bus if it is on such a one.
    fn parent(&self, index: usize) -> (String, Option<String>) {
        match self.above(index) {
            None => {
                let sbdf: Sbdf = self.lines[index].name.parse().unwrap();
                let bus = self.lines[index]
                    .hex("root")
                    .map_or(sbdf.bus(), |bus| u8::try_from(bus).unwrap());
                (format!("pci{:04x}:{bus:02x}", sbdf.domain()), None)
            }
            Some(line) if line.is_root_bus() => {
                let at = self.lines.iter().position(|l| l.name == line.name).unwrap();
                (line.name.clone(), self.above(at).map(|l| l.name.clone()))
            }
            Some(line) => (line.name.clone(), None),
        }
    }

    /// The bus below a bridge: that of its first child.
    fn secondary(&self, index: usize) -> u8 {
        let line = &self.lines[index];
        if let Some(bus) = line.hex("sec") {
            return u8::try_from(bus).unwrap();
        }
        self.lines[index + 1..]
            .iter()
            .take_while(|l| l.depth > line.depth)
            .find_map(|l| l.name.parse::<Sbdf>().ok())
            .map_or(0, Sbdf::bus)
    }

    fn subordinate(&self, index: usize) -> u8 {
        let line = &self.lines[index];
        let below = self.lines[index + 1..]
            .iter()
            .take_while(|l| l.depth > line.depth);
        below
            .filter_map(|l| l.name.parse::<Sbdf>().ok().map(Sbdf::bus))
            .max()
            .unwrap_or_else(|| self.secondary(index))
    }

    pub(crate) fn config(&self, name: &str) -> Vec<u8> {
        let name = name.parse::<Sbdf>().unwrap().to_string();
        let index = self.lines.iter().position(|l| l.name == name).unwrap();
        self.config_of(index)
    }

    fn config_of(&self, index: usize) -> Vec<u8> {
        let line = &self.lines[index];
        let mut config = Writer(vec![0; 4096]);
        let (number, bridge, class) = match line.kind.as_str() {
            "endpoint" => (Some(0), false, 0x02_0000),
            "legacy" => (Some(1), false, 0x02_0000),
            "root-port" => (Some(4), true, 0x06_0400),
            "upstream" => (Some(5), true, 0x06_0400),
            "downstream" => (Some(6), true, 0x06_0400),
            "pci-bridge" => (Some(7), true, 0x06_0400),
            "pcie-bridge" => (Some(8), true, 0x06_0400),
            "rciep" => (Some(9), false, 0x02_0000),
            "rcec" => (Some(10), false, 0x08_0700),
            "reserved" => (Some(12), false, 0xff_0000),
            "pci" => (None, false, 0x02_0000),
            "pci2pci" => (None, true, 0x06_0400),
            "host" => (None, false, 0x06_0000),
            other => panic!("no kind `{other}`"),
        };
        let (vendor, device) = match line.text("id") {
            Some(id) => pair(id, ':'),
            None if line.kind == "root-port" => (0x1b36, 0x000c),
            None => (0x1234, 0x11e8),
        };
        let (vendor, device) = if line.has("vf") {
            (0xffff, 0xffff)
        } else {
            (vendor, device)
        };
        config.u16(0x00, vendor);
        config.u16(0x02, device);
        config.u16(0x04, line.hex("cmd").unwrap_or(0x0006));
        config.u16(0x06, 0x0010);
        config.u32(0x08, line.hex("class").unwrap_or(class) << 8);
        config.u8(
            0x0e,
            u64::from(bridge) | if line.has("mf") { 0x80 } else { 0 },
        );
        if bridge {
            config.u8(0x18, u64::from(line.name.parse::<Sbdf>().unwrap().bus()));
            config.u8(0x19, u64::from(self.secondary(index)));
            config.u8(0x1a, u64::from(self.subordinate(index)));
            if let Some(window) = line.text("mem") {
                let (base, limit) = pair(window, '-');
                config.u16(0x20, base >> 16);
                config.u16(0x22, limit >> 16 & 0xfff0);
            }
            if let Some(window) = line.text("pref") {
                let (base, limit) = pair(window, '-');
                config.u16(0x24, base >> 16 & 0xfff0 | 1);
                config.u16(0x26, limit >> 16 & 0xfff0 | 1);
                config.u32(0x28, base >> 32);
                config.u32(0x2c, limit >> 32);
            }
        } else if let Some(sub) = line.text("sub") {
            let (vendor, device) = pair(sub, ':');
            config.u16(0x2c, vendor);
            config.u16(0x2e, device);
        }
        for bar in 0..6_usize {
            if let Some((address, _)) = self.bar(index, bar) {
                config.u32(0x10 + 4 * bar, address & 0xffff_fff0 | 0x4);
                config.u32(0x14 + 4 * bar, address >> 32);
            }
        }
        let mut list = List {
            pointer: 0x34,
            next: 0x40,
        };
        if line.has("pm") {
            let at = list.add(&mut config, 0x01, 8);
            config.u16(at + 4, line.hex("pm").unwrap());
        }
        if line.has("af") {
            let at = list.add(&mut config, 0x13, 8);
            config.u8(at + 3, 3);
        }
        if let Some(number) = number {
            let at = list.add(&mut config, 0x10, 0x3c);
            config.u16(
                at + 2,
                2 | number << 4 | if line.has("slot") { 0x100 } else { 0 },
            );
            config.u32(at + 4, if line.has("flr") { 1 << 28 } else { 0 });
            config.u32(at + 0x0c, 0x103 | line.hex("port").unwrap_or(0) << 24);
            config.u16(at + 0x12, 0x2103);
            config.u32(at + 0x14, if line.has("slot") { 0x40 } else { 0 });
            config.u32(at + 0x24, 0x20);
            config.u16(at + 0x28, if line.has("ari") { 0x20 } else { 0 });
        }
        if line.has("msi") {
            list.add(&mut config, 0x05, 0x18);
        }
        self.extended(line, &mut config);
        config.0
    }

    fn extended(&self, line: &Line, config: &mut Writer) {
        let mut at = 0x100;
        let mut previous = None;
        let mut add = |config: &mut Writer, id: u64, size: usize| {
            let here = at;
            config.u32(here, id | 1 << 16);
            if let Some(previous) = previous {
                let entry = config.get(previous) | (here as u64) << 20;
                config.u32(previous, entry);
            }
            previous = Some(here);
            at += size;
            here
        };
        // Every PCI Express function has some capability that nobody here cares for.
        let first = add(config, 0x0001, 0x48);
        config.u32(first + 4, 0x0010_0000);
        if let Some(acs) = line.text("acs") {
            let (capability, control) = pair(acs, '/');
            let here = add(config, 0x000d, 0x28);
            config.u16(here + 4, capability | line.hex("vector").unwrap_or(0) << 8);
            config.u16(here + 6, control);
            if let Some(control) = line.hex("dword-ctrl") {
                config.u32(here + 8, control);
            } else if let Some(egress) = line.hex("egress") {
                config.u32(here + 8, egress);
            }
        }
        if let Some(ats) = line.text("ats") {
            let here = add(config, 0x000f, 8);
            config.u16(here + 4, 0x20);
            config.u16(here + 6, if ats == "on" { 0x8000 } else { 0 });
        }
        if line.has("ari-cap") {
            add(config, 0x000e, 8);
        }
        if let Some(vfs) = line.hex("sriov") {
            let here = add(config, 0x0010, 0x40);
            config.u16(here + 0x08, 0x0019);
            config.u16(here + 0x0e, vfs);
            config.u16(here + 0x10, vfs);
            config.u16(here + 0x14, 0x80);
            config.u16(here + 0x16, 2);
            config.u16(here + 0x1a, line.hex("vf-device").unwrap_or(0x10ca));
            if let Some(base) = line.hex("vf-bar") {
                config.u32(here + 0x24, base & 0xffff_fff0 | 0xc);
                config.u32(here + 0x28, base >> 32);
            }
        }
        if let Some(unmasked) = line.hex("cxl-port") {
            let here = add(config, 0x0023, 0x28);
            config.u16(here + 4, 0x1e98);
            config.u16(here + 8, 3);
            config.u16(here + 0xc, unmasked);
        }
        if line.has("dead") {
            config.0.fill(0xff);
        }
    }

    fn bar(&self, index: usize, bar: usize) -> Option<(u64, u64)> {
        Some(pair(self.lines[index].text(&format!("bar{bar}"))?, '+'))
    }

    /// Lines of `resource`: number, start, end, flags.
    fn resources(&self, index: usize) -> Vec<(usize, u64, u64, u64)> {
        let line = &self.lines[index];
        let offset = line.hex("cpu-offset").unwrap_or(0);
        let mut lines: Vec<_> = (0..6)
            .filter_map(|bar| {
                let (start, size) = self.bar(index, bar)?;
                let start = start + offset;
                Some((bar, start, start + size - 1, 0x0014_0204))
            })
            .collect();
        if let Some(base) = line.hex("vf-bar") {
            let size = 0x4000 * line.hex("sriov").unwrap();
            lines.push((7, base + offset, base + offset + size - 1, 0x0014_2208));
        }
        lines
    }

    fn functions(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines
            .iter()
            .enumerate()
            .filter(|(_, line)| !line.is_root_bus())
    }

    /// The machine as a topology file.
    pub(crate) fn fixture(&self) -> String {
        let mut functions = serde_json::Map::new();
        let mut behind = serde_json::Map::new();
        for (index, line) in self.functions() {
            let (parent, provider) = self.parent(index);
            if let Some(provider) = provider {
                behind.insert(parent.clone(), json!(provider));
            }
            let config = self.config_of(index);
            let visible = if line.has("dead") {
                64
            } else {
                line.hex("visible").unwrap_or(4096)
            };
            let visible = usize::try_from(visible).unwrap();
            let mut text = serde_json::Map::new();
            text.insert("visible".into(), json!(visible));
            text.insert("read".into(), json!(format!("000-{:03x}", visible - 1)));
            for (row, bytes) in config[..visible].chunks(16).enumerate() {
                if bytes.iter().any(|b| *b != 0) {
                    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                    text.insert(format!("{:03x}", row * 16), json!(hex));
                }
            }
            let resources: serde_json::Map<_, _> = self
                .resources(index)
                .into_iter()
                .map(|(n, start, end, flags)| {
                    (n.to_string(), json!(format!("{start:x}-{end:x} {flags:x}")))
                })
                .collect();
            let mut function = json!({ "parent": parent, "config": text, "resources": resources });
            for (key, option) in [("driver", "driver"), ("reset_methods", "reset")] {
                if let Some(value) = line.text(option) {
                    function[key] = json!(value.replace(',', " "));
                }
            }
            for (key, option) in [("iommu_group", "group"), ("numa_node", "node")] {
                if let Some(value) = line.text(option) {
                    function[key] = json!(value.parse::<u32>().unwrap());
                }
            }
            if line.has("pciehp") {
                function["native_hotplug"] = json!(true);
            }
            if let Some(physical) = line.text("vf") {
                let (vendor, device) = line
                    .text("id")
                    .unwrap_or("8086:10ca")
                    .split_once(':')
                    .unwrap();
                function["physical_function"] = json!(physical.parse::<Sbdf>().unwrap());
                function["known_as"] = json!({
                    "vendor": vendor, "device": device, "subsystem_vendor": "0", "subsystem_device": "0",
                    "class": "020000",
                });
            }
            functions.insert(line.name.clone(), function);
        }
        serde_json::to_string_pretty(&json!({
            "format": "pci-topology",
            "version": 1,
            "host": self.host,
            "root_buses_behind": behind,
            "functions": functions,
        }))
        .unwrap()
    }

    pub(crate) fn topology(&self) -> Topology {
        Topology::from_fixture(&self.fixture()).unwrap()
    }

    /// The machine after it was started: with the groups that Linux gives it, and ACS words as written in the lines.
    pub(crate) fn started(&self) -> Topology {
        let bare = self.topology();
        let kernel = Kernel::of(&bare);
        let groups = GroupModel::booted(&bare, &kernel, Firmware::AsFound).groups();
        let mut document: Value = serde_json::from_str(&self.fixture()).unwrap();
        for (number, group) in groups.groups().iter().enumerate() {
            for member in group {
                document["functions"][member.to_string()]["iommu_group"] = json!(number);
            }
        }
        Topology::from_fixture(&document.to_string()).unwrap()
    }

    pub(crate) fn host(&self) -> Host {
        serde_json::from_value(self.host.clone()).unwrap()
    }

    /// The machine as a directory in the shape of sysfs.
    pub(crate) fn sysfs(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.write_sysfs(dir.path());
        dir
    }

    pub(crate) fn write_sysfs(&self, root: &Path) {
        let list = root.join("bus/pci/devices");
        fs::create_dir_all(&list).unwrap();
        let mut paths: BTreeMap<&str, PathBuf> = BTreeMap::new();
        for (index, line) in self.lines.iter().enumerate() {
            let above = self.above(index);
            let base = match above {
                Some(above) => paths[above.name.as_str()].clone(),
                None if line.is_root_bus() => PathBuf::from("devices"),
                None => PathBuf::from("devices").join(self.parent(index).0),
            };
            let path = base.join(&line.name);
            fs::create_dir_all(root.join(&path)).unwrap();
            paths.insert(&line.name, path.clone());
            if !line.is_root_bus() {
                symlink(Path::new("../../..").join(&path), list.join(&line.name)).unwrap();
                self.write_function(root, index, &root.join(path));
            }
        }
    }

    fn write_function(&self, root: &Path, index: usize, dir: &Path) {
        let line = &self.lines[index];
        let visible = usize::try_from(line.hex("visible").unwrap_or(4096)).unwrap();
        fs::write(dir.join("config"), &self.config_of(index)[..visible]).unwrap();
        let mut rows = vec![(0, 0, 0); 13];
        for (n, start, end, flags) in self.resources(index) {
            rows[n] = (start, end, flags);
        }
        let text: String = rows
            .iter()
            .map(|(start, end, flags)| format!("{start:#018x} {end:#018x} {flags:#018x}\n"))
            .collect();
        fs::write(dir.join("resource"), text).unwrap();
        fs::write(
            dir.join("numa_node"),
            format!("{}\n", line.text("node").unwrap_or("-1")),
        )
        .unwrap();
        if let Some(words) = line.text("reset") {
            fs::write(
                dir.join("reset_method"),
                format!("{}\n", words.replace(',', " ")),
            )
            .unwrap();
        }
        if let Some(driver) = line.text("driver") {
            let driver = root.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&driver).unwrap();
            symlink(driver, dir.join("driver")).unwrap();
        }
        if let Some(group) = line.text("group") {
            let group = root.join("kernel/iommu_groups").join(group);
            fs::create_dir_all(group.join("devices")).unwrap();
            symlink(dir, group.join("devices").join(&line.name)).unwrap();
            symlink(group, dir.join("iommu_group")).unwrap();
        }
        if line.has("pciehp") {
            let services = root.join("bus/pci_express/drivers/pciehp");
            fs::create_dir_all(&services).unwrap();
            fs::write(services.join(format!("{}:pcie004", line.name)), "").unwrap();
        }
        if let Some(physical) = line.text("vf") {
            let physical: Sbdf = physical.parse().unwrap();
            symlink(format!("../{physical}"), dir.join("physfn")).unwrap();
        }
        if line.has("vf") || line.has("dead") {
            let (vendor, device) = line
                .text("id")
                .unwrap_or("8086:10ca")
                .split_once(':')
                .unwrap();
            for (file, value) in [
                ("vendor", format!("0x{vendor}\n")),
                ("device", format!("0x{device}\n")),
                ("subsystem_vendor", "0x0000\n".to_owned()),
                ("subsystem_device", "0x0000\n".to_owned()),
                ("class", "0x020000\n".to_owned()),
            ] {
                fs::write(dir.join(file), value).unwrap();
            }
        }
    }

    /// The machine as a scan of its sysfs sees it.
    pub(crate) fn scanned(&self) -> Topology {
        let dir = self.sysfs();
        Topology::scan(&Sysfs::new(dir.path()), self.host()).unwrap()
    }
}

/// A configuration space to write to.
struct Writer(Vec<u8>);

impl Writer {
    fn bytes<const N: usize>(&mut self, at: usize, value: u64) {
        self.0[at..at + N].copy_from_slice(&value.to_le_bytes()[..N]);
    }

    fn u8(&mut self, at: usize, value: u64) {
        self.bytes::<1>(at, value);
    }

    fn u16(&mut self, at: usize, value: u64) {
        self.bytes::<2>(at, value);
    }

    fn u32(&mut self, at: usize, value: u64) {
        self.bytes::<4>(at, value);
    }

    fn get(&self, at: usize) -> u64 {
        u64::from(u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()))
    }
}

/// The list of capabilities while it grows.
struct List {
    pointer: usize,
    next: usize,
}

impl List {
    fn add(&mut self, config: &mut Writer, id: u64, size: usize) -> usize {
        let at = self.next;
        config.u8(self.pointer, at as u64);
        config.u8(at, id);
        self.pointer = at + 1;
        self.next += size;
        at
    }
}

/// An address.
pub(crate) fn bdf(text: &str) -> Sbdf {
    text.parse().unwrap()
}
