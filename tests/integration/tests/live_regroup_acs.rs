//! The tests of `live_regroup.rs` on switch ports with ACS: `cargo xtask test --long` runs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod live_regroup {
    pub(crate) mod drift;
    pub(crate) mod guests;
    pub(crate) mod leftovers;
}

use live_regroup::{drift, guests};

#[test]
#[ignore = "takes minutes: cargo xtask test --long"]
fn a_running_guest_gains_p2p_and_loses_it_again_while_its_work_goes_on() {
    guests::gains_p2p_and_loses_it_again_while_its_work_goes_on();
}

#[test]
#[ignore = "takes minutes: cargo xtask test --long"]
fn a_daemon_killed_on_the_way_leaves_the_old_or_the_new_state_and_every_device_in_its_guest() {
    guests::keeps_every_device_when_the_daemon_is_killed_on_the_way();
}

#[test]
#[ignore = "takes minutes: cargo xtask test --long"]
fn acs_is_put_back_and_mappings_close_when_somebody_changes_a_port_behind_the_daemons_back() {
    drift::is_put_back_and_mappings_close();
}
