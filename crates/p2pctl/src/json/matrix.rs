//! `p2pctl/matrix/1` and `p2pctl/explain/1`.

use iommu_group::{
    Crossing, Fabric, GroupId, Leak, MemoryHole, P2pDma, Partition, Policy, Reach, Sbdf, Scope,
    Verdict,
};
use serde::Serialize;

/// The document.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    policy: Scope,
    functions: Vec<Member>,
    pairs: Vec<Pair>,
    leaks: &'a [Leak],
}

#[derive(Serialize)]
struct Member {
    address: Sbdf,
    group: Option<GroupId>,
    /// Bus addresses that guest memory must keep clear of.
    memory_holes: Vec<MemoryHole>,
}

#[derive(Serialize)]
struct Pair {
    from: Sbdf,
    to: Sbdf,
    verdict: Verdict,
    /// The reasons of a refusal in words.
    reasons: Vec<String>,
    crossing: Crossing,
    /// Whether `from` can reach `to` without the IOMMU, whatever the verdict.
    reach_without_iommu: Reach,
    p2pdma: Option<P2pDma>,
}

/// Makes the document of `matrix`.
pub(crate) fn document<'a>(
    fabric: &Fabric<'_>,
    groups: &Partition,
    policy: &Policy,
    functions: &[Sbdf],
    leaks: &'a [Leak],
) -> Document<'a> {
    build("p2pctl/matrix/1", fabric, groups, policy, functions, leaks)
}

/// Makes the document of `explain`: the same for two functions.
pub(crate) fn explanation<'a>(
    fabric: &Fabric<'_>,
    groups: &Partition,
    policy: &Policy,
    functions: &[Sbdf],
    leaks: &'a [Leak],
) -> Document<'a> {
    build("p2pctl/explain/1", fabric, groups, policy, functions, leaks)
}

fn build<'a>(
    schema: &'static str,
    fabric: &Fabric<'_>,
    groups: &Partition,
    policy: &Policy,
    functions: &[Sbdf],
    leaks: &'a [Leak],
) -> Document<'a> {
    let others = |from: Sbdf| functions.iter().filter(move |to| **to != from);
    let pairs = functions
        .iter()
        .flat_map(|from| others(*from).map(|to| pair(fabric, groups, policy, *from, *to)));
    Document {
        schema,
        policy: policy.scope,
        functions: functions
            .iter()
            .map(|sbdf| Member {
                address: *sbdf,
                group: fabric
                    .topology()
                    .get(*sbdf)
                    .and_then(iommu_group::Function::group),
                memory_holes: fabric.memory_holes(*sbdf),
            })
            .collect(),
        pairs: pairs.collect(),
        leaks,
    }
}

fn pair(fabric: &Fabric<'_>, groups: &Partition, policy: &Policy, from: Sbdf, to: Sbdf) -> Pair {
    let verdict = fabric.verdict(groups, policy, from, to);
    Pair {
        from,
        to,
        reasons: match &verdict {
            Verdict::Allowed { .. } => Vec::new(),
            Verdict::Denied { reasons } => reasons.iter().map(ToString::to_string).collect(),
        },
        verdict,
        crossing: fabric.crossing(from, to),
        reach_without_iommu: fabric.reach(from, to),
        p2pdma: fabric.p2pdma(to, from),
    }
}
