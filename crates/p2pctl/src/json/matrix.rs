//! `p2pctl/matrix/1` and `p2pctl/explain/1`.

use iommu_group::assignment::{Exposed, PairRules};
use iommu_group::{
    BlockReason, Denial, GroupId, HoleCause, IsolationHole, P2pMapping, Placement, Route,
    RoutingModel, Sbdf, Scope, UntranslatedReach, Verdict,
};
use serde::Serialize;

use super::leak::LeakEntry;
use crate::accepted::AcceptedEntry;

/// The document.
#[derive(Serialize)]
pub(crate) struct Document {
    schema: &'static str,
    policy: Scope,
    functions: Vec<Member>,
    pairs: Vec<Pair>,
    leaks: Vec<LeakEntry>,
    accepted: Vec<AcceptedEntry>,
}

#[derive(Serialize)]
struct Member {
    address: Sbdf,
    group: Option<GroupId>,
    memory_holes: Vec<Hole>,
}

#[derive(Serialize)]
struct Hole {
    first: String,
    last: String,
    port: Sbdf,
    cause: HoleCause,
    certain: bool,
}

#[derive(Serialize)]
struct Pair {
    from: Sbdf,
    to: Sbdf,
    allowed: bool,
    reasons: Vec<Reason>,
    route: &'static str,
    placement: Option<Placement>,
    common: Option<Sbdf>,
    ingress: Option<Sbdf>,
    egress: Option<Sbdf>,
    completions_detour: bool,
    reach_without_iommu: UntranslatedReach,
    p2pdma: Option<Kernel>,
}

#[derive(Serialize)]
struct Reason {
    kind: &'static str,
    text: String,
}

#[derive(Serialize)]
struct Kernel {
    mapping: P2pMapping,
    distance: u32,
    redirecting: Vec<Sbdf>,
    cpu_supports: bool,
    host_bridge_listed: bool,
}

/// Inputs of a document.
pub(crate) struct Request<'a> {
    pub(crate) pairs: &'a PairRules<'a>,
    pub(crate) functions: &'a [Sbdf],
    pub(crate) leaks: &'a [IsolationHole],
    pub(crate) accepted: &'a [Exposed],
}

/// The document of `matrix`.
pub(crate) fn matrix(request: &Request<'_>) -> Document {
    build("p2pctl/matrix/1", request)
}

/// The document of `explain`, which is that of `matrix` for two functions.
pub(crate) fn explanation(request: &Request<'_>) -> Document {
    build("p2pctl/explain/1", request)
}

fn build(schema: &'static str, request: &Request<'_>) -> Document {
    let all = request.functions;
    let pairs = all.iter().flat_map(|from| {
        let others = all.iter().filter(move |to| *to != from);
        others.map(|to| pair(request, *from, *to))
    });
    Document {
        schema,
        policy: request.pairs.scope(),
        functions: all
            .iter()
            .map(|sbdf| member(request.pairs.routing(), *sbdf))
            .collect(),
        pairs: pairs.collect(),
        leaks: request.leaks.iter().map(LeakEntry::of).collect(),
        accepted: request.accepted.iter().map(AcceptedEntry::of).collect(),
    }
}

fn member(routing: &RoutingModel<'_>, address: Sbdf) -> Member {
    let holes = routing.memory_holes(address);
    Member {
        address,
        group: routing
            .topology()
            .get(address)
            .and_then(iommu_group::Function::group),
        memory_holes: holes
            .iter()
            .map(|hole| Hole {
                first: format!("{:#x}", hole.range.start()),
                last: format!("{:#x}", hole.range.end()),
                port: hole.port,
                cause: hole.cause,
                certain: hole.certain,
            })
            .collect(),
    }
}

fn pair(request: &Request<'_>, from: Sbdf, to: Sbdf) -> Pair {
    let routing = request.pairs.routing();
    let verdict = request.pairs.verdict(from, to);
    let path = routing.path(from, to);
    let (placement, reasons) = match &verdict {
        Verdict::Allowed { placement, .. } => (Some(*placement), Vec::new()),
        Verdict::Denied { reasons } => (None, reasons.iter().map(reason).collect()),
    };
    Pair {
        from,
        to,
        allowed: verdict.is_allowed(),
        reasons,
        route: match path.route {
            Route::SwitchLocal => "switch-local",
            Route::SwitchLocalTranslated => "switch-local-translated",
            Route::HostBridge => "host-bridge",
            Route::Blocked(_) => "blocked",
        },
        placement,
        common: path.common,
        ingress: path.ingress,
        egress: path.egress,
        completions_detour: path.completions_detour,
        reach_without_iommu: routing.reach(from, to),
        p2pdma: routing.p2pdma(to, from).map(|opinion| Kernel {
            mapping: opinion.mapping,
            distance: opinion.distance,
            redirecting: opinion.redirecting,
            cpu_supports: opinion.cpu_supports,
            host_bridge_listed: opinion.host_bridge_listed,
        }),
    }
}

fn reason(denial: &Denial) -> Reason {
    Reason {
        kind: match denial {
            Denial::DifferentGroups { .. } => "different-groups",
            Denial::NoGroup { .. } => "no-group",
            Denial::Role { .. } => "role",
            Denial::NoMemory { .. } => "no-memory",
            Denial::Route(block) => match block {
                BlockReason::Missing { .. } => "missing",
                BlockReason::Itself => "itself",
                BlockReason::NotADevice { .. } => "not-a-device",
                BlockReason::Unreadable { .. } => "unreadable",
                BlockReason::PciBridge { .. } => "pci-bridge",
                BlockReason::EgressControl { .. } => "egress-control",
                BlockReason::NoUpstreamForwarding { .. } => "no-upstream-forwarding",
                BlockReason::RootComplex { .. } => "root-complex",
                BlockReason::ProvidedBus { .. } => "provided-bus",
            },
        },
        text: denial.to_string(),
    }
}
