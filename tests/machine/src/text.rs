//! Machines from indented lists.

use std::collections::BTreeMap;

use iommu_group::Sbdf;

use super::function::{BarKind, Function, Kind, Virtual};
use super::{Placed, PlacedBar};

/// A function or a root bus.
struct Line<'a> {
    depth: usize,
    name: &'a str,
    kind: &'a str,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        Self {
            depth: text.len() - text.trim_start().len(),
            name: words.next().unwrap(),
            kind: words.next().unwrap_or(""),
            options: words
                .map(|word| word.split_once('=').unwrap_or((word, "")))
                .collect(),
        }
    }

    /// The address of a function. A root bus has none.
    fn sbdf(&self) -> Option<Sbdf> {
        self.name.parse().ok()
    }

    fn has(&self, option: &str) -> bool {
        self.options.contains_key(option)
    }

    fn text(&self, option: &str) -> Option<&'a str> {
        self.options.get(option).copied()
    }

    fn hex<T: TryFrom<u64>>(&self, option: &str) -> Option<T> {
        self.text(option).map(hex)
    }

    fn pair<T: TryFrom<u64>>(&self, option: &str, separator: char) -> Option<(T, T)> {
        let (a, b) = self.text(option)?.split_once(separator).unwrap();
        Some((hex(a), hex(b)))
    }

    /// A window as its first address and the address after its last one.
    fn window(&self, option: &str) -> Option<(u64, u64)> {
        self.pair(option, '-')
            .map(|(base, limit)| (base, limit + 1))
    }

    /// Kind and class of the function.
    fn kind(&self) -> (Kind, u32) {
        match self.kind {
            "endpoint" => (Kind::Endpoint, 0x02_0000),
            "legacy" => (Kind::LegacyEndpoint, 0x02_0000),
            "root-port" => (Kind::RootPort, 0x06_0400),
            "upstream" => (Kind::Upstream, 0x06_0400),
            "downstream" => (Kind::Downstream, 0x06_0400),
            "pci-bridge" => (Kind::PcieToPci, 0x06_0400),
            "pcie-bridge" => (Kind::PciToPcie, 0x06_0400),
            "rciep" => (Kind::Integrated, 0x02_0000),
            "rcec" => (Kind::EventCollector, 0x08_0700),
            "reserved" => (Kind::Reserved, 0xff_0000),
            "pci" => (Kind::Conventional, 0x02_0000),
            "pci2pci" => (Kind::ConventionalBridge, 0x06_0400),
            "host" => (Kind::Conventional, 0x06_0000),
            other => panic!("no kind `{other}`"),
        }
    }

    fn function(&self) -> Function {
        let (kind, class) = self.kind();
        let physical = self.has("vf");
        let ids = self.pair("id", ':').unwrap_or(match kind {
            Kind::RootPort => (0x1b36, 0x000c),
            _ if physical => (0x8086, 0x10ca),
            _ => (0x1234, 0x11e8),
        });
        let mut function = Function::new(kind, ids, self.hex("class").unwrap_or(class)).link(3, 16);
        function.subsystem = self.pair("sub", ':').unwrap_or((0, 0));
        function.command = Some(0x0006);
        function.power = self.hex("pm");
        function.msi_x = false;
        function.advanced_features = self.has("af");
        function.flr = self.has("flr");
        function.ari = self.has("ari");
        function.port = self.hex("port").unwrap_or(0);
        function.slot = self.has("slot").then_some(0);
        function.native_hotplug = self.has("pciehp");
        if let Some((capability, control)) = self.pair::<u16>("acs", '/') {
            let vector: u16 = self.hex("vector").unwrap_or(0);
            function.acs = Some((capability | vector << 8, control));
        }
        function.acs_word = self.hex("dword-ctrl").or(self.hex("egress")).unwrap_or(0);
        function.ats = self.text("ats").map(|ats| ats == "on");
        function.virtual_functions = self.hex("sriov").map(|count| Virtual {
            count,
            device: 0x10ca,
            bar_size: 0x4000,
            driver: None,
            first: 0x80,
            stride: 2,
        });
        function.cxl_port = self.hex("cxl-port");
        function.dead = self.has("dead");
        function.driver = self.text("driver").map(str::to_owned);
        function.resets = self.text("reset").unwrap_or("").replace(',', " ");
        function
    }

    /// The function in a directory, with the lines that are below it.
    fn placed(&self, sbdf: Sbdf, dir: String, below: &[Line<'_>]) -> Placed {
        let mut placed = Placed::new(self.function(), sbdf, dir);
        placed.numa = self.text("node").map_or(-1, |node| node.parse().unwrap());
        placed.multifunction = self.has("mf");
        placed.link_up = true;
        placed.physical = self.text("vf").map(|physical| physical.parse().unwrap());
        if placed.function.kind.is_bridge() {
            let below = below.iter().filter_map(|line| Some(line.sbdf()?.bus()));
            let secondary = below.clone().next().unwrap_or(0);
            placed.buses = Some((secondary, below.max().unwrap_or(secondary)));
        }
        for index in 0..6 {
            if let Some((address, size)) = self.pair(&format!("bar{index}"), '+') {
                let kind = BarKind::Memory64;
                placed.bars.push(PlacedBar {
                    index,
                    kind,
                    address,
                    size,
                });
            }
        }
        placed.window = self.window("mem");
        placed.prefetch_window = self.window("pref");
        placed.virtual_bars = self.hex("vf-bar");
        placed.group = self.text("group").map(|group| group.parse().unwrap());
        placed.cpu_offset = self.hex("cpu-offset").unwrap_or(0);
        if let Some(visible) = self.hex("visible") {
            placed.visible = visible;
        }
        placed
    }
}

fn hex<T: TryFrom<u64>>(text: &str) -> T {
    let number = u64::from_str_radix(text, 16).ok();
    let number = number.and_then(|number| number.try_into().ok());
    number.unwrap_or_else(|| panic!("`{text}` is not a hexadecimal number in range"))
}

/// The functions of a list.
pub(crate) fn parse(text: &str) -> Vec<Placed> {
    let lines = text.lines().filter(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#')
    });
    let lines: Vec<Line<'_>> = lines.map(Line::parse).collect();
    let mut placed = Vec::new();
    // Indentation and directory of the line, and of all lines that it is below.
    let mut above: Vec<(usize, String)> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        while above.last().is_some_and(|(depth, _)| *depth >= line.depth) {
            above.pop();
        }
        let dir = match (above.last(), line.sbdf()) {
            (Some((_, dir)), _) => dir.clone(),
            (None, Some(sbdf)) => format!("pci{:04x}:{:02x}", sbdf.domain(), sbdf.bus()),
            (None, None) => panic!("`{}` is not below a function", line.name),
        };
        let name = line
            .sbdf()
            .map_or(line.name.to_owned(), |sbdf| sbdf.to_string());
        above.push((line.depth, format!("{dir}/{name}")));
        if let Some(sbdf) = line.sbdf() {
            let rest = &lines[index + 1..];
            let end = rest.iter().position(|other| other.depth <= line.depth);
            placed.push(line.placed(sbdf, dir, &rest[..end.unwrap_or(rest.len())]));
        }
    }
    placed
}
