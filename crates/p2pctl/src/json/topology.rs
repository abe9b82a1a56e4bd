//! `p2pctl/topology/1`.

use iommu_group::assignment::Exposed;
use iommu_group::{Acs, Bar, Function, Groups, RootBus, RoutingModel, Sbdf, Topology};
use serde_json::{Value, json};

use super::{Document, accepted};

/// The document of all functions at and below `below`, or of all functions if `below` is empty.
pub(crate) fn topology(topology: &Topology, below: &[Sbdf], exposed: &[Exposed]) -> Document {
    let wanted = |function: &&Function| {
        let mut above = topology.ancestors(function.sbdf()).map(Function::sbdf);
        let is_top = |sbdf: &Sbdf| below.contains(sbdf);
        below.is_empty() || is_top(&function.sbdf()) || above.any(|bridge| is_top(&bridge))
    };
    let roots = topology.root_buses().iter();
    let roots = roots.map(|root| json!({ "name": root.to_string(), "behind": root.behind }));
    let functions = topology.functions().iter().filter(wanted);
    let functions = functions.map(|function| entry(topology, function));
    let fields = json!({
        "host": topology.host(),
        "root_buses": roots.collect::<Vec<_>>(),
        "functions": functions.collect::<Vec<_>>(),
        "leaks": RoutingModel::found(topology).isolation_holes(&Groups::found(topology)),
        "accepted": accepted(exposed),
    });
    Document::new("p2pctl/topology/1", fields)
}

fn entry(topology: &Topology, function: &Function) -> Value {
    let (sbdf, ids, config) = (function.sbdf(), function.ids(), function.config());
    let link = config.express.and_then(|express| express.link);
    let reset_methods = function.reset_method_words().into_iter().flatten();
    json!({
        "address": sbdf,
        "parent": topology.upstream(sbdf).map(Function::sbdf),
        "root_bus": topology.root_bus(sbdf).map(RootBus::to_string),
        "type": function.port_type(),
        "vendor": format!("{:04x}", ids.vendor),
        "device": format!("{:04x}", ids.device),
        "class": format!("{:06x}", function.class()),
        "driver": function.driver(),
        "group": function.group(),
        "numa_node": function.numa_node(),
        "physical_function": function.physical_function(),
        "multifunction": function.is_multifunction(),
        "acs": acs(function.acs()),
        "ats_enabled": config.ats.map(|ats| ats.enabled),
        "link": link.map(|link| json!({
            "generation": link.generation,
            "lanes": link.lanes,
            "max_generation": link.max_generation,
            "max_lanes": link.max_lanes,
        })),
        "bars": topology.bars(function).iter().map(bar).collect::<Vec<_>>(),
        "reset_methods": reset_methods.collect::<Vec<_>>(),
        "hidden": config.hidden,
        "faults": config.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn acs(acs: &Acs) -> Value {
    match acs {
        Acs::Absent => json!({ "state": "absent" }),
        Acs::Unknown(why) => json!({ "state": "unknown", "why": why }),
        Acs::Known(registers) => json!({
            "state": "known",
            "capability": registers.capability,
            "control": registers.control,
        }),
    }
}

fn bar(bar: &Bar) -> Value {
    json!({
        "index": bar.index,
        "space": bar.space,
        "prefetchable": bar.prefetchable,
        "size_bytes": bar.size_bytes,
        // A string, because some JSON readers limit numbers to 53 bits.
        "bus_address": bar.bus_address.map(|address| format!("{address:#x}")),
    })
}
