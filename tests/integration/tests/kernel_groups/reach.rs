//! Who reaches whom without the IOMMU: what the ports' registers say against what requests do.

use std::collections::BTreeMap;

use iommu_group::{RoutingModel, Sbdf, UntranslatedReach};
use lab::Lab;
use lab::report::Finding;

/// Ordered pairs of an endpoint and the function that it aimed at, and whether its requests arrived.
pub(crate) type Observed = BTreeMap<(Sbdf, Sbdf), bool>;

/// Aims from every endpoint of the lab at every other function.
pub(crate) fn observe(lab: &Lab) -> Observed {
    // Without an endpoint there is nothing to see, which the probe says with its exit code.
    let output = lab.run(["guest-probe", "reach"]).unwrap();
    let mut observed = Observed::new();
    for line in output.stdout.lines() {
        let Ok(Finding::Reach {
            initiator,
            target,
            arrived,
        }) = serde_json::from_str(line)
        else {
            panic!("{line}");
        };
        let pair = (initiator.parse().unwrap(), target.parse().unwrap());
        observed.insert(pair, arrived);
    }
    assert!(output.stderr.is_empty(), "{}", output.stderr);
    observed
}

/// A pair of which something else was seen than predicted.
#[derive(Debug)]
#[expect(dead_code, reason = "shown in a panic")]
pub(crate) struct Difference {
    from: Sbdf,
    to: Sbdf,
    predicted: UntranslatedReach,
    arrived: bool,
}

/// Where prediction and observation differ. What the specification leaves open ([`UntranslatedReach::Perhaps`]) is
/// decided by the lab's parts: its root complex does not route between root ports, and devices that route between their
/// functions have ACS, as they must.
pub(crate) fn differences(routing: &RoutingModel<'_>, observed: &Observed) -> Vec<Difference> {
    let compare = |(&(from, to), &arrived): (&(Sbdf, Sbdf), &bool)| {
        let predicted = routing.reach(from, to);
        let same = match predicted {
            UntranslatedReach::Yes => arrived,
            UntranslatedReach::No | UntranslatedReach::Perhaps => !arrived,
            UntranslatedReach::Unknown => false,
        };
        (!same).then_some(Difference {
            from,
            to,
            predicted,
            arrived,
        })
    };
    observed.iter().filter_map(compare).collect()
}
