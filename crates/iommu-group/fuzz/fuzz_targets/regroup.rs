//! Arbitrary goals on arbitrary machines: a plan that is made is safe at every moment and does what it says.

#![no_main]

use iommu_group::{Kernel, Plan, Topology};
use iommu_group_fuzz::{carry_out, goals, is_lawful, machine_with_groups};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // What is asked comes first, so that it stays the same when functions are added at the end.
    let (asked, rest) = bytes.split_at(bytes.len().min(12));
    let topology = Topology::from_fixture(&machine_with_groups(rest)).expect("it is a machine");
    let (goals, options) = goals(asked, &topology);
    let kernel = Kernel::of(&topology);
    match Plan::make(&topology, &kernel, &goals, &options) {
        Ok(plan) => {
            let read = Plan::from_json(&plan.to_json()).expect("what was written is read back");
            assert_eq!(read, plan);
            if is_lawful(&topology) {
                carry_out(&topology, &kernel, &plan);
            }
        }
        Err(refusal) => assert!(!refusal.reasons.is_empty()),
    }
});
