//! Arbitrary text as a topology file: it is refused, or read into a machine of which everything holds.

#![no_main]

use iommu_group::Topology;
use iommu_group_fuzz::{check_groups, check_resets, check_routes, check_text};
use libfuzzer_sys::fuzz_target;

/// Most functions of a machine that is looked at pair by pair.
const MOST_FUNCTIONS: usize = 32;

fuzz_target!(|text: &str| {
    let topology = match Topology::from_fixture(text) {
        Ok(topology) => topology,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    check_text(&topology);
    if topology.functions().len() <= MOST_FUNCTIONS {
        check_groups(&topology);
        check_routes(&topology);
        check_resets(&topology);
    }
});
