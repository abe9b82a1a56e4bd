//! Existing exposures that the operator's policy file accepts.

use std::collections::BTreeSet;

use iommu_group::Sbdf;
use iommu_group::assignment::Exposed;

use crate::show::{Line, Text, Tone};
use crate::source::Source;

/// The accepted exposures that involve one of these functions; all of them if no function is given.
pub(crate) fn of(source: &Source, functions: &[Sbdf]) -> Vec<Exposed> {
    let functions: BTreeSet<Sbdf> = functions.iter().copied().collect();
    let reached = source.host.policy().exposed().flat_map(|function| {
        let exposures = source.host.exposures(&[function].into(), &BTreeSet::new());
        let exposures = exposures.into_iter();
        exposures.filter(move |exposed| exposed.exposure.function == function)
    });
    reached
        .filter(|exposed| exposed.exposure.needs_consent())
        .filter(|exposed| functions.is_empty() || exposed.exposure.involves(&functions))
        .collect()
}

/// Whether the exposure is between these two functions.
pub(crate) fn is_between(accepted: &Exposed, [a, b]: [Sbdf; 2]) -> bool {
    let exposure = &accepted.exposure;
    let reaches = |from, to| exposure.function == to && exposure.to.contains(&from);
    reaches(a, b) || reaches(b, a)
}

/// The exposures as text, one line each.
pub(crate) fn lines(source: &Source, accepted: &[Exposed], width: usize) -> Text {
    let mut text = Text::new();
    if !accepted.is_empty() {
        text.blank();
    }
    for exposed in accepted {
        let words = source.names.shorten(&exposed.to_string());
        text.push_wrapped(&Line::new().toned(Tone::Warn, words), width, 2);
    }
    text
}
