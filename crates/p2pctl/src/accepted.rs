//! Exposures that the operator's policy file accepts, as far as there are any now.

use std::collections::BTreeSet;

use iommu_group::{Exposure, Fabric, Partition, Sbdf};
use p2p_vfio::Consent;
use serde::Serialize;

use crate::show::{Line, Text, Tone};
use crate::source::Source;

/// An exposure that is accepted.
pub(crate) struct Accepted {
    exposure: Exposure,
    consent: Consent,
}

/// The same in a document.
#[derive(Serialize)]
pub(crate) struct AcceptedEntry {
    function: Sbdf,
    to: Vec<Sbdf>,
    through: Vec<Sbdf>,
    why: String,
}

impl Accepted {
    /// Those in which one of these functions takes part, or all if none is named.
    pub(crate) fn of(source: &Source, functions: &[Sbdf]) -> Vec<Self> {
        let fabric = Fabric::found(&source.topology);
        let groups = Partition::found(&source.topology);
        let functions: BTreeSet<Sbdf> = functions.iter().copied().collect();
        let reached = source.policy.exposed().flat_map(|function| {
            let exposures = fabric.exposures(&groups, &[function].into()).into_iter();
            exposures.filter(move |exposure| exposure.function == function)
        });
        reached
            .filter(Exposure::needs_consent)
            .filter(|exposure| functions.is_empty() || exposure.involves(&functions))
            .filter_map(|exposure| {
                let consent = source.policy.consent(exposure.function)?.clone();
                Some(Self { exposure, consent })
            })
            .collect()
    }

    /// Whether one of the two reaches the other.
    pub(crate) fn is_between(&self, [a, b]: [Sbdf; 2]) -> bool {
        let reaches = |from, to| self.exposure.function == to && self.exposure.to.contains(&from);
        reaches(a, b) || reaches(b, a)
    }

    pub(crate) fn entry(&self) -> AcceptedEntry {
        AcceptedEntry {
            function: self.exposure.function,
            to: self.exposure.to.clone(),
            through: self.exposure.through.clone(),
            why: self.consent.to_string(),
        }
    }
}

/// A line for each.
pub(crate) fn lines(source: &Source, accepted: &[Accepted], width: usize) -> Text {
    let mut text = Text::new();
    if !accepted.is_empty() {
        text.blank();
    }
    for Accepted { exposure, consent } in accepted {
        let words = source.names.shorten(&format!("{exposure}; {consent}"));
        text.push_wrapped(&Line::new().toned(Tone::Warn, words), width, 2);
    }
    text
}
