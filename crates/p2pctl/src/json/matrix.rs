//! `p2pctl/matrix/1` and `p2pctl/explain/1`.

use iommu_group::assignment::{Exposed, PairRules};
use iommu_group::{Denial, Function, IsolationHole, MemoryHole, RoutingModel, Sbdf, Verdict};
use serde_json::{Value, json};

use super::{Document, accepted, variant};

/// The document of all pairs of these functions.
pub(crate) fn matrix(
    schema: &'static str,
    rules: &PairRules<'_>,
    functions: &[Sbdf],
    holes: &[IsolationHole],
    exposed: &[Exposed],
) -> Document {
    let members = functions.iter().map(|sbdf| member(rules.routing(), *sbdf));
    let pairs = functions.iter().flat_map(|from| {
        let others = functions.iter().filter(move |to| *to != from);
        others.map(|to| pair(rules, *from, *to))
    });
    let fields = json!({
        "policy": rules.scope(),
        "functions": members.collect::<Vec<_>>(),
        "pairs": pairs.collect::<Vec<_>>(),
        "leaks": holes,
        "accepted": accepted(exposed),
    });
    Document::new(schema, fields)
}

fn member(routing: &RoutingModel<'_>, address: Sbdf) -> Value {
    let holes = routing.memory_holes(address);
    json!({
        "address": address,
        "group": routing.topology().get(address).and_then(Function::group),
        "memory_holes": holes.iter().map(hole).collect::<Vec<_>>(),
    })
}

fn hole(hole: &MemoryHole) -> Value {
    json!({
        "first": format!("{:#x}", hole.range.start()),
        "last": format!("{:#x}", hole.range.end()),
        "port": hole.port,
        "cause": hole.cause,
        "certain": hole.certain,
    })
}

fn pair(rules: &PairRules<'_>, from: Sbdf, to: Sbdf) -> Value {
    let routing = rules.routing();
    let path = routing.path(from, to);
    let (placement, reasons) = match rules.verdict(from, to) {
        Verdict::Allowed { placement, .. } => (Some(placement), Vec::new()),
        Verdict::Denied { reasons } => (None, reasons),
    };
    json!({
        "from": from,
        "to": to,
        "allowed": placement.is_some(),
        "reasons": reasons.iter().map(reason).collect::<Vec<_>>(),
        "route": variant(&path.route),
        "placement": placement,
        "common": path.common,
        "ingress": path.ingress,
        "egress": path.egress,
        "completions_detour": path.completions_detour,
        "reach_without_iommu": routing.reach(from, to),
        "p2pdma": routing.p2pdma(to, from),
    })
}

fn reason(denial: &Denial) -> Value {
    let kind = match denial {
        Denial::Route(block) => variant(block),
        denial => variant(denial),
    };
    json!({ "kind": kind, "text": denial.to_string() })
}
