//! Plans: parsed from text, and made for arbitrary goals on arbitrary machines.

use std::str;
use std::sync::LazyLock;

use iommu_group::{GroupModel, Kernel, Plan, Topology};

use super::carry_out::carry_out;
use super::check::{check_partition, is_lawful};
use super::goals::goals;
use super::machine::machine_with_groups;

/// A machine with a switch, on which plans are executed.
const MACHINE: &str = include_str!("../../../resources/topologies/switch-four-nvme.json");

/// Maximum number of steps applied to the model.
const MOST_STEPS: usize = 64;

static TOPOLOGY: LazyLock<Topology> =
    LazyLock::new(|| Topology::from_fixture(MACHINE).expect("the seed is a machine"));

/// The text of a plan. Checks that it is refused or that its written form parses to the same plan, and that its steps
/// do no harm to a model of another machine.
pub(crate) fn plan(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
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
        check_partition(&model.groups());
    }
    for objection in &plan.objections {
        let _ = (objection.remedy(), objection.to_string());
    }
    for transient in &plan.transients {
        let _ = transient.to_string();
    }
}

/// The input is goals, then a machine. Checks that a plan's written form parses to the same plan. If PCI Express
/// permits the machine, the plan must be safe at every moment and have its stated effect.
pub(crate) fn regroup(input: &[u8]) {
    // The goals come first, so that they stay the same when functions are added at the end.
    let (asked, rest) = input.split_at(input.len().min(12));
    let text = machine_with_groups(rest);
    let topology = Topology::from_fixture(&text).expect("a generated machine is valid");
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
}
