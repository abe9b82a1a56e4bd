//! Regroup plans, carried out by hand on a live switch: what was predicted happens, and only that.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use iommu_group::{Goals, GroupModel, Kernel, Partition, Plan, PlanOptions, Sbdf, Step, Topology};
use lab::{Lab, Profile};

/// The endpoints below the four downstream ports.
const ENDPOINTS: [&str; 4] = [
    "0000:03:00.0",
    "0000:04:00.0",
    "0000:05:00.0",
    "0000:06:00.0",
];

fn sbdf(text: &str) -> Sbdf {
    text.parse().unwrap()
}

fn set(endpoints: &[&str]) -> BTreeSet<Sbdf> {
    endpoints.iter().map(|text| sbdf(text)).collect()
}

fn scan(lab: &Lab) -> Topology {
    let dump = lab.run(["p2pctl", "dump"]).unwrap().ok().unwrap();
    Topology::from_fixture(&dump).unwrap()
}

fn found(lab: &Lab) -> Partition {
    Partition::found(&scan(lab))
}

fn device(sbdf: &Sbdf, file: &str) -> String {
    format!("/sys/bus/pci/devices/{sbdf}/{file}")
}

/// Does in the host what a step says.
fn carry_out(lab: &Lab, step: &Step) {
    let echo =
        |word: &str, path: String| lab.sh(&format!("echo {word} > {path}")).map(drop).unwrap();
    match step {
        Step::Unplug { functions } => {
            for function in functions {
                echo(&function.to_string(), device(function, "driver/unbind"));
            }
        }
        Step::KeepAwake { ports } => {
            for port in ports {
                echo("on", device(port, "power/control"));
            }
        }
        Step::SetAcs { port, from, to, .. } => {
            let now = lab.sh(&format!("setpci -s {port} ECAP_ACS+6.w")).unwrap();
            assert_eq!(now.trim(), format!("{from:04x}"), "{step:?}");
            lab.sh(&format!("setpci -s {port} ECAP_ACS+6.w={to:x}"))
                .unwrap();
        }
        Step::SetEgress { .. } => panic!("no port here has egress control: {step:?}"),
        Step::Remove { functions } => {
            for function in functions {
                echo("1", device(function, "remove"));
            }
        }
        Step::Rescan { .. } => echo("1", "/sys/bus/pci/rescan".to_owned()),
        Step::CheckGroups { expect } => {
            let found = found(lab);
            for group in expect {
                let kernel = found.group_of(group[0]).unwrap();
                assert_eq!(kernel, group.as_slice(), "{step:?}");
            }
        }
        Step::Replug { functions } => {
            for function in functions {
                lab.bind_vfio(&function.to_string()).unwrap();
            }
        }
    }
}

/// Makes the plan for `goals` and carries it out; what it names is all that changes.
fn reach(lab: &Lab, goals: &Goals, options: &PlanOptions) -> Plan {
    let before = scan(lab);
    let kernel = Kernel::of(&before);
    let plan = Plan::make(&before, &kernel, goals, options).unwrap();
    assert!(plan.is_acceptable(), "{:#?}", plan.objections);
    let mut model = GroupModel::as_found(&before, &kernel);
    for step in &plan.steps {
        step.apply(&mut model);
        carry_out(lab, step);
    }
    let after = scan(lab);
    let differences = model.partition().differences(&Partition::found(&after));
    assert!(differences.is_empty(), "{differences:#?}");
    for function in before.functions() {
        let now = after.get(function.sbdf()).unwrap();
        assert_eq!(now.driver(), function.driver(), "{}", function.sbdf());
        assert_eq!(now.acs(), function.acs(), "{}", function.sbdf());
    }
    plan
}

fn join(endpoints: &[&str]) -> Goals {
    Goals {
        join: vec![set(endpoints)],
        ..Goals::default()
    }
}

/// Marks an endpoint with something that does not survive being removed and found again.
fn mark(lab: &Lab, endpoint: &str) {
    lab.sh(&format!("echo 0 > /sys/bus/pci/devices/{endpoint}/msi_bus"))
        .unwrap();
}

fn is_marked(lab: &Lab, endpoint: &str) -> bool {
    let path = format!("/sys/bus/pci/devices/{endpoint}/msi_bus");
    lab.read(&path).unwrap() == "0"
}

#[test]
fn endpoints_of_a_live_switch_are_joined_and_split_and_the_others_stay_untouched() {
    let profile = Profile::named("edu-four-ports").unwrap();
    let lab = Lab::boot(&profile, "plan").unwrap();
    let [a, b, c, d] = ENDPOINTS;
    for endpoint in ENDPOINTS {
        lab.bind_vfio(endpoint).unwrap();
        mark(&lab, endpoint);
    }

    let plan = reach(&lab, &join(&[a, b]), &PlanOptions::default());
    assert_eq!(plan.unplug, set(&[a, b]));
    let groups = found(&lab);
    assert!(groups.together(sbdf(a), sbdf(b)));
    assert!(!groups.together(sbdf(a), sbdf(c)) && !groups.together(sbdf(c), sbdf(d)));
    assert!(is_marked(&lab, c) && is_marked(&lab, d));
    assert!(!is_marked(&lab, a), "the mark is one");

    let third = PlanOptions {
        with: set(&[a, b]),
        ..PlanOptions::default()
    };
    let plan = reach(&lab, &join(&[a, b, c]), &third);
    assert_eq!(plan.unplug, set(&[c]), "two are together already");
    let groups = found(&lab);
    assert!(groups.together(sbdf(a), sbdf(c)));
    assert!(!groups.together(sbdf(a), sbdf(d)));
    assert!(is_marked(&lab, d));

    mark(&lab, a);
    let isolate = Goals {
        isolate: set(&[b]),
        ..Goals::default()
    };
    // The switch has no ACS, so only Linux keeps it apart: that has to be accepted.
    let split = PlanOptions {
        with: set(&[a, c]),
        expose: set(&[b]),
        ..PlanOptions::default()
    };
    reach(&lab, &isolate, &split);
    let groups = found(&lab);
    assert!(groups.together(sbdf(a), sbdf(c)));
    assert!(!groups.together(sbdf(a), sbdf(b)));
    assert!(is_marked(&lab, a) && is_marked(&lab, d));
}
