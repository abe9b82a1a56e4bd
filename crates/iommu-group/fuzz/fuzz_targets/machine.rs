//! Machines put together from arbitrary bytes: ports, bridges and devices with plausible registers, hung anywhere.

#![no_main]

use iommu_group::Topology;
use iommu_group_fuzz::{check_groups, check_resets, check_routes, check_text, machine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = machine(bytes);
    let topology = Topology::from_fixture(&text).expect("a machine of this making is a machine");
    check_text(&topology);
    check_groups(&topology);
    check_routes(&topology);
    check_resets(&topology);
});
