//! Arbitrary text as a plan: it is refused, or what is written of it reads back the same, and no step of it does harm
//! to a model of a machine that it was not made for.

#![no_main]

use std::sync::LazyLock;

use iommu_group::{GroupModel, Kernel, Plan, Topology};
use iommu_group_fuzz::{MACHINE, check_partition};
use libfuzzer_sys::fuzz_target;

/// Most steps that are done to the model.
const MOST_STEPS: usize = 64;

static TOPOLOGY: LazyLock<Topology> =
    LazyLock::new(|| Topology::from_fixture(MACHINE).expect("the seed is a machine"));

fuzz_target!(|text: &str| {
    let plan = match Plan::from_json(text) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let written = plan.to_json();
    let again = Plan::from_json(&written).expect("what was written is read back");
    assert_eq!(again, plan);
    assert_eq!(again.to_json(), written);

    let kernel = Kernel::of(&TOPOLOGY);
    let mut model = GroupModel::as_found(&TOPOLOGY, &kernel);
    for step in plan.steps.iter().take(MOST_STEPS) {
        step.apply(&mut model);
        check_partition(&model.partition());
    }
    for objection in &plan.objections {
        let _ = (objection.remedy(), objection.to_string());
    }
    for transient in &plan.transients {
        let _ = transient.to_string();
    }
});
