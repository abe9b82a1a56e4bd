//! Configuration spaces, topology files, machines and plans: the inputs and decisions of `iommu-group`.

#[path = "../../crates/iommu-group/tests/common/carry_out.rs"]
#[allow(unreachable_pub, reason = "shared with tests")]
mod carry_out;
mod check;
mod config;
mod goals;
mod machine;
mod plan;

pub(crate) use config::config;
pub(crate) use plan::{plan, regroup};

use std::str;

use iommu_group::Topology;

use check::{check_groups, check_resets, check_routes, check_text};

/// Maximum number of functions of a machine that is checked pair by pair.
const MOST_FUNCTIONS: usize = 32;

/// The text of a topology file. Checks that it is refused, or that its written form parses to the same topology and the
/// machine passes the checks of [`machine()`].
pub(crate) fn fixture(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
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
}

/// A machine with ports, bridges and devices at arbitrary places, with plausible registers. Checks that groups, routes
/// and resets are consistent.
pub(crate) fn machine(input: &[u8]) {
    let text = machine::machine(input);
    let topology = Topology::from_fixture(&text).expect("a generated machine is valid");
    check_text(&topology);
    check_groups(&topology);
    check_routes(&topology);
    check_resets(&topology);
}
