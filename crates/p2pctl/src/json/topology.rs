//! `p2pctl/topology/1`.

use iommu_group::assignment::Exposed;
use iommu_group::{
    Acs, AcsBits, Bar, Function, GroupId, Groups, Host, PortType, RootBus, RoutingModel, Sbdf,
    Space, Topology, Unreadable,
};
use serde::Serialize;

use super::leak::LeakEntry;
use crate::accepted::AcceptedEntry;

/// The document.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    host: &'a Host,
    root_buses: Vec<Root>,
    functions: Vec<Entry<'a>>,
    leaks: Vec<LeakEntry>,
    accepted: Vec<AcceptedEntry>,
}

#[derive(Serialize)]
struct Root {
    name: String,
    behind: Option<Sbdf>,
}

#[derive(Serialize)]
struct Entry<'a> {
    address: Sbdf,
    /// The bridge above; `None` on a root bus.
    parent: Option<Sbdf>,
    root_bus: Option<String>,
    #[serde(rename = "type")]
    port_type: PortType,
    vendor: String,
    device: String,
    class: String,
    driver: Option<&'a str>,
    group: Option<GroupId>,
    numa_node: Option<u32>,
    physical_function: Option<Sbdf>,
    multifunction: bool,
    acs: AcsEntry,
    ats_enabled: Option<bool>,
    link: Option<LinkEntry>,
    bars: Vec<BarEntry>,
    reset_methods: Vec<&'a str>,
    /// Why part of its configuration space is unknown.
    hidden: Option<Unreadable>,
    /// Errors in its configuration space.
    faults: Vec<String>,
}

#[derive(Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
enum AcsEntry {
    Absent,
    Unknown {
        why: Unreadable,
    },
    Known {
        capability: AcsBits,
        control: AcsBits,
    },
}

#[derive(Serialize)]
struct LinkEntry {
    generation: u8,
    lanes: u8,
    max_generation: u8,
    max_lanes: u8,
}

#[derive(Serialize)]
struct BarEntry {
    index: u8,
    space: Space,
    prefetchable: bool,
    size_bytes: u64,
    bus_address: Option<String>,
}

/// The document of all functions at and below `below`, or of all functions if `below` is empty.
pub(crate) fn document<'a>(
    topology: &'a Topology,
    below: &[Sbdf],
    accepted: &[Exposed],
) -> Document<'a> {
    let wanted = |function: &&Function| {
        below.is_empty()
            || below.contains(&function.sbdf())
            || topology
                .ancestors(function.sbdf())
                .any(|bridge| below.contains(&bridge.sbdf()))
    };
    let leaks = RoutingModel::found(topology).isolation_holes(&Groups::found(topology));
    Document {
        schema: "p2pctl/topology/1",
        host: topology.host(),
        root_buses: topology
            .root_buses()
            .iter()
            .map(|root| Root {
                name: root.to_string(),
                behind: root.behind,
            })
            .collect(),
        functions: topology
            .functions()
            .iter()
            .filter(wanted)
            .map(|function| entry(topology, function))
            .collect(),
        leaks: leaks.iter().map(LeakEntry::of).collect(),
        accepted: accepted.iter().map(AcceptedEntry::of).collect(),
    }
}

fn entry<'a>(topology: &Topology, function: &'a Function) -> Entry<'a> {
    let ids = function.ids();
    let config = function.config();
    Entry {
        address: function.sbdf(),
        parent: topology.upstream(function.sbdf()).map(Function::sbdf),
        root_bus: topology.root_bus(function.sbdf()).map(RootBus::to_string),
        port_type: function.port_type(),
        vendor: format!("{:04x}", ids.vendor),
        device: format!("{:04x}", ids.device),
        class: format!("{:06x}", function.class()),
        driver: function.driver(),
        group: function.group(),
        numa_node: function.numa_node(),
        physical_function: function.physical_function(),
        multifunction: function.is_multifunction(),
        acs: match function.acs() {
            Acs::Absent => AcsEntry::Absent,
            Acs::Unknown(why) => AcsEntry::Unknown { why: *why },
            Acs::Known(registers) => AcsEntry::Known {
                capability: registers.capability,
                control: registers.control,
            },
        },
        ats_enabled: config.ats.map(|ats| ats.enabled),
        link: config.express.and_then(|e| e.link).map(|link| LinkEntry {
            generation: link.generation,
            lanes: link.lanes,
            max_generation: link.max_generation,
            max_lanes: link.max_lanes,
        }),
        bars: topology.bars(function).iter().map(bar).collect(),
        reset_methods: function
            .reset_method_words()
            .map(Iterator::collect)
            .unwrap_or_default(),
        hidden: config.hidden,
        faults: config.faults.iter().map(ToString::to_string).collect(),
    }
}

fn bar(bar: &Bar) -> BarEntry {
    BarEntry {
        index: bar.index,
        space: bar.space,
        prefetchable: bar.prefetchable,
        size_bytes: bar.size_bytes,
        // A string, because some JSON readers limit numbers to 53 bits.
        bus_address: bar.bus_address.map(|address| format!("{address:#x}")),
    }
}
