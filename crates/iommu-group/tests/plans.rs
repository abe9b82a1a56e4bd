//! Plans: what they are, that they do what they say, and that they are safe at every moment.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

#[path = "common/carry_out.rs"]
mod carry_out;

use std::collections::{BTreeMap, BTreeSet};

use carry_out::{as_topology, carry_out};
use iommu_group::{
    Goals, Infeasible, Kernel, Plan, PlanError, PlanOptions, Route, RoutePreference, Sbdf, Step,
    Topology, Warning,
};
use test_machine::{Machine, bdf};

/// A switch with four live endpoints; `{port}` is what its downstream ports have, `{ep}` what the endpoints have.
fn switch(port: &str, ep: &str) -> String {
    "
00:00.0 host id=8086:29c0
00:04.0 root-port acs=5f/1d
  01:00.0 upstream
    02:00.0 downstream {port} port=0
      03:00.0 endpoint bar0=e0000000+4000 {ep}
    02:01.0 downstream {port} port=1
      04:00.0 endpoint bar0=e0100000+4000 {ep}
    02:02.0 downstream {port} port=2
      05:00.0 endpoint bar0=e0200000+4000 {ep}
    02:03.0 downstream {port} port=3
      06:00.0 endpoint bar0=e0300000+4000 {ep}
00:05.0 root-port acs=5f/1d
  07:00.0 endpoint
"
    .replace("{port}", port)
    .replace("{ep}", ep)
}

fn set(functions: &str) -> BTreeSet<Sbdf> {
    functions.split_whitespace().map(bdf).collect()
}

fn join(functions: &str) -> Goals {
    Goals {
        join: vec![set(functions)],
        ..Goals::default()
    }
}

fn isolate(functions: &str) -> Goals {
    Goals {
        isolate: set(functions),
        ..Goals::default()
    }
}

fn acs(port: &str, bits: &str) -> Goals {
    Goals {
        acs: BTreeMap::from([(bdf(port), bits.parse().unwrap())]),
        ..Goals::default()
    }
}

fn make(
    topology: &Topology,
    goals: &Goals,
    options: &PlanOptions,
) -> Result<Plan, Vec<Infeasible>> {
    let kernel = Kernel::of(topology);
    let plan = Plan::make(topology, &kernel, goals, options).map_err(|refusal| refusal.reasons)?;
    carry_out(topology, &kernel, &plan);
    assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
    Ok(plan)
}

fn plan(topology: &Topology, goals: &Goals) -> Plan {
    make(topology, goals, &PlanOptions::default()).unwrap()
}

fn route(wish: RoutePreference) -> PlanOptions {
    PlanOptions {
        route: wish,
        ..PlanOptions::default()
    }
}

fn short(sbdf: &Sbdf) -> String {
    sbdf.to_string()[5..].to_owned()
}

fn words(functions: &BTreeSet<Sbdf>) -> String {
    functions.iter().map(short).collect::<Vec<_>>().join(" ")
}

/// The steps of a plan as words.
fn steps(plan: &Plan) -> Vec<String> {
    plan.steps
        .iter()
        .map(|step| match step {
            Step::Unplug { functions } => format!("unplug {}", words(functions)),
            Step::KeepAwake { ports } => format!("awake {}", words(ports)),
            Step::SetAcs { port, from, to, .. } => format!("{} {from:04x}>{to:04x}", short(port)),
            Step::SetEgress { port, to, .. } => format!("{} open to {:?}", short(port), to),
            Step::Remove { functions } => format!("remove {}", words(functions)),
            Step::Rescan { below } => format!("rescan {}", words(below)),
            Step::CheckGroups { .. } => "check".to_owned(),
            Step::Replug { functions } => format!("replug {}", words(functions)),
        })
        .collect()
}

fn ways(plan: &Plan, from: &str, to: &str) -> (Route, Route) {
    let change = plan
        .routes
        .iter()
        .find(|c| c.from == bdf(from) && c.to == bdf(to))
        .unwrap();
    (change.before, change.after)
}

/// The machine after a plan was carried out.
fn after(topology: &Topology, plan: &Plan) -> Topology {
    let kernel = Kernel::of(topology);
    as_topology(&carry_out(topology, &kernel, plan))
}

#[test]
fn the_least_invasive_merge() {
    // The ports have no ACS: requests go straight as soon as the group allows it.
    let topology = Machine::new(&switch("", "")).started();
    let found = plan(&topology, &join("03:00.0 04:00.0"));
    assert_eq!(
        steps(&found),
        [
            "unplug 03:00.0 04:00.0",
            "awake 00:04.0 01:00.0",
            "remove 02:00.0 02:01.0",
            "00:04.0 001d>0015",
            "rescan 01:00.0",
            "00:04.0 0015>001d",
            "check",
            "replug 03:00.0 04:00.0",
        ]
    );
    assert!(found.is_acceptable());
    assert_eq!(ways(&found, "03:00.0", "04:00.0").1, Route::SwitchLocal);
    assert_eq!((found.ports.len(), found.exposures.len()), (0, 0));
    assert_eq!(
        found.transients[0].to_string(),
        "completion redirect off; requests stay redirected"
    );
    let alive: Vec<_> = found.transients[0].alive.iter().map(short).collect();
    assert_eq!(alive, ["05:00.0", "06:00.0"]);
    // Those who stay are as reachable as before, and the plan says so.
    assert!(
        found
            .leaks
            .iter()
            .any(|leak| leak.exposed.contains(&bdf("05:00.0")))
    );
    let group: Vec<_> = found
        .groups
        .iter()
        .find(|g| g.function == bdf("03:00.0"))
        .unwrap()
        .after
        .clone();
    assert_eq!(
        group,
        ["01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"].map(bdf)
    );
}

#[test]
fn a_third_joins_and_one_is_split_off_again() {
    for ports in ["", "acs=5f/1d"] {
        let topology = Machine::new(&switch(ports, ""))
            .cpu("AuthenticAMD", 0x19)
            .started();
        let two = after(&topology, &plan(&topology, &join("03:00.0 04:00.0")));
        let third = plan(&two, &join("03:00.0 04:00.0 05:00.0"));
        let removed: Vec<_> = third
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Remove { functions } => Some(words(functions)),
                _ => None,
            })
            .collect();
        assert_eq!(removed, ["02:02.0"], "only the new one moves");
        assert!(third.is_acceptable(), "{:?}", third.objections);
        let three = after(&two, &third);
        let split = plan(&three, &isolate("04:00.0"));
        let not_apart = Warning::NotApart {
            function: bdf("04:00.0"),
            from: ["03:00.0", "05:00.0", "06:00.0"].map(bdf).to_vec(),
        };
        let expected = if ports.is_empty() {
            vec![not_apart]
        } else {
            vec![]
        };
        assert_eq!(split.objections, expected, "Linux alone keeps it apart");
        assert_eq!(
            steps(&split),
            [
                "unplug 04:00.0",
                "awake 00:04.0 01:00.0",
                "remove 02:01.0",
                "rescan 01:00.0",
                "check",
                "replug 04:00.0"
            ],
        );
        let end = after(&three, &split);
        let groups = iommu_group::Groups::found(&end);
        assert!(groups.together(bdf("03:00.0"), bdf("05:00.0")));
        assert!(!groups.together(bdf("03:00.0"), bdf("04:00.0")));
    }
}

#[test]
fn what_is_joined_needs_no_plan() {
    let topology = Machine::new(&switch("", "")).started();
    let two = after(&topology, &plan(&topology, &join("03:00.0 04:00.0")));
    let again = plan(&two, &join("03:00.0 04:00.0"));
    assert_eq!(steps(&again), [""; 0]);
    assert_eq!(again.boot, None);
    assert_eq!(steps(&plan(&two, &isolate("06:00.0"))), [""; 0]);
}

#[test]
fn the_mildest_means_that_the_hardware_has() {
    let straight = (Route::SwitchLocal, "open");
    let translated = (Route::SwitchLocalTranslated, "open");
    for (ports, endpoint, route, control, exposed) in [
        // Translated requests: nobody else is reached.
        ("acs=5f/1d", "ats=on", translated, "0055", false),
        (
            "acs=7f/1d vector=4 egress=0",
            "ats=on",
            translated,
            "0055",
            false,
        ),
        // Egress control: neither.
        ("acs=7f/1d vector=4 egress=0", "", straight, "0035", false),
        (
            "acs=3f/1d vector=4 egress=0",
            "ats=on",
            straight,
            "0035",
            false,
        ),
        // A vector that is too short for the ports, or none of either: all that is left is to stop redirecting.
        ("acs=7f/1d vector=3 egress=0", "", straight, "0011", true),
        ("acs=5f/1d", "", straight, "0011", true),
        ("acs=5f/1d", "ats=off", straight, "0011", true),
        // Where translated requests are blocked they stay so.
        ("acs=5f/1f", "ats=on", straight, "0013", true),
    ] {
        let topology = Machine::new(&switch(ports, endpoint)).started();
        let found = plan(&topology, &join("03:00.0 04:00.0"));
        let case = format!("{ports} {endpoint}");
        assert_eq!(ways(&found, "03:00.0", "04:00.0").1, route.0, "{case}");
        assert_eq!(ways(&found, "04:00.0", "03:00.0").1, route.0, "{case}");
        let ports: Vec<_> = found
            .ports
            .iter()
            .map(|p| (short(&p.port), format!("{:04x}", p.after)))
            .collect();
        assert_eq!(
            ports,
            [
                ("02:00.0".to_owned(), control.to_owned()),
                ("02:01.0".to_owned(), control.to_owned())
            ],
            "{case}"
        );
        assert_eq!(
            !found.is_acceptable(),
            exposed,
            "{case}: {:?}",
            found.objections
        );
    }
}

#[test]
fn egress_control_opens_only_the_ports_of_the_others() {
    let topology = Machine::new(&switch("acs=7f/1d vector=4 egress=0", "")).started();
    let found = plan(&topology, &join("03:00.0 04:00.0"));
    let last = steps(&found)[7..].to_vec();
    assert_eq!(
        last,
        [
            "awake 02:00.0 02:01.0",
            "02:00.0 open to EgressVector(4 of 0000000d)",
            "02:00.0 001d>0035",
            "02:01.0 open to EgressVector(4 of 0000000e)",
            "02:01.0 001d>0035",
            "replug 03:00.0 04:00.0"
        ]
    );
    assert!(found.exposures.iter().all(|e| found.goals.asks_for(e)));
    assert_eq!(found.exposures.len(), 2);
}

#[test]
fn egress_control_is_as_it_was_after_there_and_back() {
    let topology = Machine::new(&switch("acs=7f/1d vector=4 egress=0", "")).started();
    let registers = |topology: &Topology| {
        ["02:00.0", "02:01.0"].map(|port| {
            let acs = topology.get(bdf(port)).unwrap().acs().registers();
            acs.map(|acs| (acs.control, acs.egress.unwrap()))
        })
    };
    let joined = after(&topology, &plan(&topology, &join("03:00.0 04:00.0")));
    assert_ne!(registers(&joined), registers(&topology));
    let apart = after(&joined, &plan(&joined, &isolate("03:00.0 04:00.0")));
    assert_eq!(registers(&apart), registers(&topology));
}

#[test]
fn exposure_is_refused_unless_accepted_by_name() {
    let topology = Machine::new(&switch("acs=5f/1d", "")).started();
    let found = plan(&topology, &join("03:00.0 04:00.0"));
    let said: Vec<String> = found.objections.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "0000:05:00.0 becomes reachable without the IOMMU from 0000:03:00.0, 0000:04:00.0",
            "0000:06:00.0 becomes reachable without the IOMMU from 0000:03:00.0, 0000:04:00.0"
        ]
    );
    assert_eq!(
        found.objections[0].remedy(),
        Some(("expose", bdf("05:00.0")))
    );
    let accepted = PlanOptions {
        expose: set("05:00.0 06:00.0"),
        ..PlanOptions::default()
    };
    let found = make(&topology, &join("03:00.0 04:00.0"), &accepted).unwrap();
    assert!(found.is_acceptable());
    assert_eq!(
        steps(&found),
        [
            "unplug 03:00.0 04:00.0",
            "awake 00:04.0 01:00.0 02:00.0 02:01.0",
            "remove 02:00.0 02:01.0",
            "00:04.0 001d>0015",
            "rescan 01:00.0",
            "00:04.0 0015>001d",
            "check",
            "awake 02:00.0 02:01.0",
            "02:00.0 001d>0011",
            "02:01.0 001d>0011",
            "replug 03:00.0 04:00.0",
        ]
    );
    // All of the switch joined: nobody else is left to be exposed.
    let all = plan(&topology, &join("03:00.0 04:00.0 05:00.0 06:00.0"));
    assert!(all.is_acceptable(), "{:?}", all.objections);
}

#[test]
fn a_known_root_complex_spares_the_neighbours() {
    let topology = Machine::new(&switch("acs=5f/1d", ""))
        .cpu("AuthenticAMD", 0x19)
        .started();
    let found = plan(&topology, &join("03:00.0 04:00.0"));
    assert!(found.is_acceptable());
    assert_eq!(
        ways(&found, "03:00.0", "04:00.0"),
        (Route::HostBridge, Route::HostBridge)
    );
    assert_eq!(found.ports, []);
    // Straight only when asked for, and then with its price.
    let direct = make(
        &topology,
        &join("03:00.0 04:00.0"),
        &route(RoutePreference::Direct),
    )
    .unwrap();
    assert_eq!(ways(&direct, "03:00.0", "04:00.0").1, Route::SwitchLocal);
    assert_eq!(direct.objections.len(), 2);
}

#[test]
fn through_the_iommu_when_asked() {
    let topology = Machine::new(&switch("acs=5f/1d", "")).started();
    let found = make(
        &topology,
        &join("03:00.0 04:00.0"),
        &route(RoutePreference::Iommu),
    )
    .unwrap();
    assert!(found.is_acceptable());
    assert!(matches!(
        ways(&found, "03:00.0", "04:00.0").1,
        Route::Blocked(_)
    ));
    // Ports that are open are closed, before anything else.
    let open = switch("acs=5f/11", "").replace(
        "02:02.0 downstream acs=5f/11",
        "02:02.0 downstream acs=5f/1d",
    );
    let topology = Machine::new(&open).cpu("AuthenticAMD", 0x19).started();
    let found = make(
        &topology,
        &join("03:00.0 05:00.0"),
        &route(RoutePreference::Iommu),
    )
    .unwrap();
    assert!(steps(&found).contains(&"02:00.0 0011>001d".to_owned()));
    assert_eq!(ways(&found, "03:00.0", "05:00.0").1, Route::HostBridge);
    // Ports without ACS cannot be closed.
    let bare = Machine::new(&switch("", "")).started();
    let found = make(
        &bare,
        &join("03:00.0 04:00.0"),
        &route(RoutePreference::Iommu),
    )
    .unwrap();
    assert!(matches!(
        found.objections[..],
        [
            Warning::RouteNotAsAsked { .. },
            Warning::RouteNotAsAsked { .. }
        ]
    ));
}

#[test]
fn straight_is_not_to_be_had_everywhere() {
    let text = "
00:01.0 root-port acs=5f/1d
  01:00.0 endpoint mf acs=0/0
  01:00.1 endpoint mf acs=0/0
";
    let topology = Machine::new(text).started();
    let found = make(
        &topology,
        &join("01:00.0 01:00.1"),
        &route(RoutePreference::Direct),
    )
    .unwrap();
    assert_eq!(found.objections.len(), 2);
    let text = found.objections[0].to_string();
    assert!(text.contains("have no route: "), "{text}");
    // The group is to be had: both join their port.
    let mild = plan(&topology, &join("01:00.0 01:00.1"));
    assert!(mild.is_acceptable());
    assert_eq!(
        steps(&mild),
        [
            "unplug 01:00.0 01:00.1",
            "awake 00:01.0",
            "remove 01:00.0 01:00.1",
            "00:01.0 001d>0015",
            "rescan 00:01.0",
            "00:01.0 0015>001d",
            "check",
            "replug 01:00.0 01:00.1"
        ]
    );
}

#[test]
fn what_a_port_lacks_for_the_moment() {
    let with = |root_port: &str| switch("", "").replacen("acs=5f/1d", root_port, 1);
    for (root_port, word) in [
        ("acs=5f/1d", Some("001d>0015")),
        // No completion redirect: upstream forwarding.
        ("acs=17/15", Some("0015>0005")),
        ("acs=01/01", None),
        ("acs=0/0", None),
    ] {
        let topology = Machine::new(&with(root_port)).started();
        let found = make(&topology, &join("03:00.0 04:00.0"), &PlanOptions::default());
        match (found, word) {
            (Ok(found), Some(word)) => {
                assert!(
                    steps(&found).contains(&format!("00:04.0 {word}")),
                    "{root_port}"
                );
            }
            (Err(reasons), None) => assert!(
                matches!(&reasons[..], [Infeasible::CannotOpen { anchor, .. }] if *anchor == bdf("01:00.0")),
                "{root_port}: {reasons:?}"
            ),
            (found, _) => panic!("{root_port}: {found:?}"),
        }
    }
    // Only request redirect, and others are alive below: all of the switch has to be found again, with nobody alive.
    let topology = Machine::new(&with("acs=07/05")).started();
    let found = plan(&topology, &join("03:00.0 04:00.0"));
    assert_eq!(found.transients[0].alive, []);
    assert_eq!(words(&found.unplug), "03:00.0 04:00.0 05:00.0 06:00.0");
    assert_eq!(found.objections.len(), 2);
    // With nobody else below, request redirect will do.
    let topology = Machine::new(&with("acs=07/05")).started();
    let all = plan(&topology, &join("03:00.0 04:00.0 05:00.0 06:00.0"));
    assert!(steps(&all).contains(&"00:04.0 0005>0001".to_owned()));
    assert_eq!(all.transients[0].alive, []);
}

const NESTED: &str = "
00:01.0 root-port acs=5f/1d
  01:00.0 upstream
    02:00.0 downstream acs=5f/1d port=0
      03:00.0 upstream
        04:00.0 downstream acs=5f/1d port=0
          05:00.0 endpoint
        04:01.0 downstream acs=5f/1d port=1
          06:00.0 endpoint
        04:02.0 downstream acs=5f/1d port=2
          07:00.0 endpoint
    02:01.0 downstream acs=5f/1d port=1
      08:00.0 endpoint
    02:02.0 downstream acs=5f/1d port=2
      09:00.0 endpoint
";

#[test]
fn within_an_inner_switch_the_port_above_it_is_opened() {
    let topology = Machine::new(NESTED).cpu("AuthenticAMD", 0x17).started();
    let found = plan(&topology, &join("05:00.0 06:00.0"));
    assert_eq!(
        steps(&found),
        [
            "unplug 05:00.0 06:00.0",
            "awake 00:01.0 01:00.0 02:00.0 03:00.0",
            "remove 04:00.0 04:01.0",
            "02:00.0 001d>0015",
            "rescan 03:00.0",
            "02:00.0 0015>001d",
            "check",
            "replug 05:00.0 06:00.0"
        ]
    );
}

#[test]
fn what_had_to_come_along_is_taken_out_again() {
    let topology = Machine::new(NESTED).cpu("AuthenticAMD", 0x17).started();
    let found = plan(&topology, &join("05:00.0 08:00.0"));
    assert_eq!(
        steps(&found),
        [
            "unplug 05:00.0 06:00.0 07:00.0 08:00.0",
            "awake 00:01.0 01:00.0 02:00.0 03:00.0",
            "remove 02:00.0 02:01.0",
            "00:01.0 001d>0015",
            "rescan 01:00.0",
            "00:01.0 0015>001d",
            "check",
            "awake 02:00.0 03:00.0",
            "remove 04:01.0 04:02.0",
            "rescan 03:00.0",
            "check",
            "replug 05:00.0 06:00.0 07:00.0 08:00.0"
        ]
    );
    // They are interrupted, but not regrouped.
    assert_eq!(
        found.objections,
        [
            Warning::Interrupts {
                function: bdf("06:00.0")
            },
            Warning::Interrupts {
                function: bdf("07:00.0")
            }
        ]
    );
    let accepted = PlanOptions {
        with: set("06:00.0 07:00.0"),
        ..PlanOptions::default()
    };
    assert!(
        make(&topology, &join("05:00.0 08:00.0"), &accepted)
            .unwrap()
            .is_acceptable()
    );
}

#[test]
fn those_that_cannot_be_left_behind_need_to_be_accepted() {
    // Two functions of one device without ACS share a group whatever one does.
    let text = switch("acs=5f/1d", "").replace(
        "      04:00.0 endpoint bar0=e0100000+4000 \n",
        "      04:00.0 endpoint mf\n      04:00.1 endpoint mf\n",
    );
    let topology = Machine::new(&text).cpu("AuthenticAMD", 0x17).started();
    let found = plan(&topology, &join("03:00.0 04:00.0"));
    assert_eq!(
        found.objections,
        [
            Warning::Regroups {
                function: bdf("04:00.1"),
                with: vec![bdf("03:00.0")]
            },
            Warning::Interrupts {
                function: bdf("04:00.1")
            },
        ]
    );
    let accepted = PlanOptions {
        with: set("04:00.1"),
        ..PlanOptions::default()
    };
    assert!(
        make(&topology, &join("03:00.0 04:00.0"), &accepted)
            .unwrap()
            .is_acceptable()
    );
}

#[test]
fn two_sets_of_one_switch_become_one() {
    let topology = Machine::new(&switch("", "")).started();
    let goals = Goals {
        join: vec![set("03:00.0 04:00.0"), set("05:00.0 06:00.0")],
        ..Goals::default()
    };
    let found = make(&topology, &goals, &PlanOptions::default()).unwrap();
    assert!(found.objections.iter().any(|o| matches!(
        o,
        Warning::Merges { function, with } if *function == bdf("03:00.0") && *with == ["05:00.0", "06:00.0"].map(bdf)
    )));
    // Sets that share a function are one set from the start.
    let goals = Goals {
        join: vec![set("03:00.0 04:00.0"), set("04:00.0 05:00.0")],
        ..Goals::default()
    };
    let found = make(&topology, &goals, &PlanOptions::default()).unwrap();
    assert!(found.is_acceptable());
    assert_eq!(found.goals.join, [set("03:00.0 04:00.0 05:00.0")]);
}

#[test]
fn one_joins_while_another_leaves() {
    let topology = Machine::new(&switch("", "")).started();
    let two = after(&topology, &plan(&topology, &join("03:00.0 04:00.0")));
    let goals = Goals {
        join: vec![set("03:00.0 05:00.0")],
        isolate: set("04:00.0"),
        ..Goals::default()
    };
    let accepted = PlanOptions {
        expose: set("04:00.0"),
        ..PlanOptions::default()
    };
    let found = make(&two, &goals, &accepted).unwrap();
    assert!(found.is_acceptable(), "{:?}", found.objections);
    let end = iommu_group::Groups::found(&after(&two, &found));
    assert!(end.together(bdf("03:00.0"), bdf("05:00.0")));
    assert_eq!(
        end.group_of(bdf("04:00.0")).unwrap(),
        ["02:01.0", "04:00.0"].map(bdf)
    );
}

#[test]
fn to_isolate_routes_are_closed_before_groups_split() {
    let topology = Machine::new(&switch("acs=5f/1d", "")).started();
    let expose = PlanOptions {
        expose: set("06:00.0"),
        ..PlanOptions::default()
    };
    let three = make(&topology, &join("03:00.0 04:00.0 05:00.0"), &expose).unwrap();
    let joined = after(&topology, &three);
    let found = plan(&joined, &isolate("05:00.0"));
    assert_eq!(
        steps(&found),
        [
            "unplug 03:00.0 04:00.0 05:00.0",
            "awake 00:04.0 01:00.0 02:00.0 02:01.0 02:02.0",
            "02:02.0 0011>001d",
            "02:00.0 0011>001d",
            "02:01.0 0011>001d",
            "remove 02:02.0",
            "rescan 01:00.0",
            "check",
            "replug 03:00.0 04:00.0 05:00.0"
        ]
    );
    // The others lose their straight way, or the one that leaves stays within their reach.
    assert_eq!(
        found.objections,
        [
            Warning::Interrupts {
                function: bdf("03:00.0")
            },
            Warning::Interrupts {
                function: bdf("04:00.0")
            }
        ]
    );
    let reachable = PlanOptions {
        expose: set("05:00.0"),
        ..PlanOptions::default()
    };
    let found = make(&joined, &isolate("05:00.0"), &reachable).unwrap();
    assert!(found.is_acceptable());
    assert_eq!(words(&found.unplug), "05:00.0");
    assert_eq!(
        found
            .ports
            .iter()
            .map(|p| short(&p.port))
            .collect::<Vec<_>>(),
        ["02:02.0"]
    );
    assert!(
        found
            .leaks
            .iter()
            .any(|leak| leak.exposed == [bdf("05:00.0")])
    );
}

#[test]
fn what_cannot_be_isolated() {
    let text = "
00:01.0 root-port acs=5f/1d
  01:00.0 endpoint mf
  01:00.1 endpoint mf
00:02.0 root-port acs=5f/1d
  02:00.0 pci-bridge
    03:00.0 pci
    03:01.0 pci
00:03.0 root-port
  04:00.0 upstream
    05:00.0 downstream acs=5f/1d
      06:00.0 endpoint
    05:01.0 downstream acs=5f/1d
      07:00.0 endpoint
";
    let topology = Machine::new(text).started();
    let refused =
        |functions| make(&topology, &isolate(functions), &PlanOptions::default()).unwrap_err();
    for (function, from, culprit) in [
        ("01:00.0", "01:00.1", Some("01:00.0")),
        ("03:00.0", "03:01.0", None),
        ("06:00.0", "07:00.0", Some("00:03.0")),
    ] {
        let reasons = refused(function);
        let [
            Infeasible::Inseparable {
                function: named,
                from: others,
                because,
            },
        ] = &reasons[..]
        else {
            panic!("{reasons:?}");
        };
        assert_eq!(
            (*named, others.as_slice()),
            (bdf(function), &[bdf(from)][..])
        );
        assert_eq!(
            because.map(|(culprit, _)| culprit),
            culprit.map(bdf),
            "{function}"
        );
    }
    // Both together leave the rest, if there is any, as one.
    assert_eq!(
        steps(&plan(&topology, &isolate("01:00.0 01:00.1"))),
        [""; 0]
    );
}

#[test]
fn functions_of_a_device_leave_their_port_together() {
    let text = "
00:01.0 root-port acs=5f/1d
  01:00.0 upstream
    02:00.0 downstream acs=5f/1d
      03:00.0 endpoint mf
      03:00.1 endpoint mf
    02:01.0 downstream acs=5f/1d
      04:00.0 endpoint
";
    let topology = Machine::new(text).cpu("AuthenticAMD", 0x17).started();
    let with = PlanOptions {
        with: set("03:00.1"),
        ..PlanOptions::default()
    };
    let joined = after(
        &topology,
        &make(&topology, &join("03:00.0 04:00.0"), &with).unwrap(),
    );
    let found = plan(&joined, &isolate("03:00.0 03:00.1"));
    assert!(found.is_acceptable(), "{:?}", found.objections);
    let end = iommu_group::Groups::found(&after(&joined, &found));
    assert_eq!(
        end.group_of(bdf("03:00.0")).unwrap(),
        ["03:00.0", "03:00.1"].map(bdf)
    );
}

#[test]
fn words_that_were_asked_for() {
    let topology = Machine::new(&switch("acs=5f/1d", "")).started();
    let found = plan(&topology, &acs("02:00.0", "0011"));
    // Nothing alive is below while the word lets more pass.
    assert_eq!(
        steps(&found),
        [
            "unplug 03:00.0",
            "awake 00:04.0 01:00.0 02:00.0",
            "remove 03:00.0",
            "02:00.0 001d>0011",
            "rescan 02:00.0",
            "check",
            "replug 03:00.0"
        ]
    );
    let exposed: Vec<_> = found
        .objections
        .iter()
        .filter_map(Warning::remedy)
        .collect();
    assert_eq!(
        exposed,
        ["04:00.0", "05:00.0", "06:00.0"].map(|f| ("expose", bdf(f)))
    );
    // A word that changes no group needs no removal.
    let found = plan(&topology, &acs("02:00.0", "005d"));
    assert_eq!(
        steps(&found),
        [
            "unplug 03:00.0",
            "awake 00:04.0 01:00.0 02:00.0",
            "02:00.0 001d>005d",
            "replug 03:00.0"
        ]
    );
    assert_eq!(steps(&plan(&topology, &acs("02:00.0", "001d"))), [""; 0]);
}

#[test]
fn words_that_must_not_or_cannot_be() {
    let text = switch("acs=5f/1d", "").replace("01:00.0 upstream", "01:00.0 upstream mf acs=5f/1d");
    let topology = Machine::new(&text).started();
    let found = plan(&topology, &acs("02:00.0", "000c"));
    assert!(found.objections.iter().any(|o| matches!(
        o,
        Warning::ClearsSafety { bits, .. } if bits.to_string() == "SV UF"
    )));
    for (port, bits, expected) in [
        ("01:00.0", "0011", "NotAPort"),
        ("03:00.0", "0011", "NotAPort"),
        ("02:00.0", "003d", "NotImplemented"),
        ("02:00.0", "011d", "NotImplemented"),
    ] {
        let reasons = make(&topology, &acs(port, bits), &PlanOptions::default()).unwrap_err();
        assert!(
            format!("{:?}", reasons[0]).starts_with(expected),
            "{port} {bits}: {reasons:?}"
        );
    }
    let bare = Machine::new(&switch("", "")).started();
    let reasons = make(&bare, &acs("02:00.0", "0011"), &PlanOptions::default()).unwrap_err();
    assert_eq!(
        reasons,
        [Infeasible::NoAcs {
            port: bdf("02:00.0")
        }]
    );
}

#[test]
fn a_root_port_that_stops_redirecting_may_expose_its_neighbours() {
    let text = "
00:04.0 root-port acs=5f/1d
  04:00.0 endpoint
00:05.0 root-port acs=5f/1d
  05:00.0 endpoint
00:06.0 rciep
";
    let topology = Machine::new(text).started();
    let found = plan(&topology, &acs("00:04.0", "0011"));
    let objections: Vec<_> = found
        .objections
        .iter()
        .map(|o| (o.remedy().unwrap(), o.to_string()))
        .collect();
    assert_eq!(objections[0].0, ("expose", bdf("00:06.0")));
    assert_eq!(objections[1].0, ("expose", bdf("05:00.0")));
    assert!(objections[1].1.contains("may become reachable"));
    // What is below joins its port.
    let end = iommu_group::Groups::found(&after(&topology, &found));
    assert!(end.together(bdf("00:04.0"), bdf("04:00.0")));
}

#[test]
fn goals_that_cannot_be_reached() {
    let text = switch("acs=5f/1d", "");
    let topology = Machine::new(&text).started();
    let refused = |goals: &Goals| make(&topology, goals, &PlanOptions::default()).unwrap_err();
    assert_eq!(refused(&Goals::default()), [Infeasible::NoGoal]);
    assert_eq!(
        refused(&join("03:00.0")),
        [Infeasible::Alone {
            function: bdf("03:00.0")
        }]
    );
    assert_eq!(
        refused(&join("03:00.0 07:00.0")),
        [Infeasible::DifferentRootPorts {
            a: bdf("03:00.0"),
            b: bdf("07:00.0")
        }]
    );
    assert_eq!(
        refused(&join("03:00.0 09:00.0 02:00.0")),
        [
            Infeasible::Missing {
                function: bdf("09:00.0")
            },
            Infeasible::NotADevice {
                function: bdf("02:00.0")
            }
        ]
    );
    let both = Goals {
        join: vec![set("03:00.0 04:00.0")],
        isolate: set("03:00.0"),
        ..Goals::default()
    };
    assert_eq!(
        refused(&both),
        [Infeasible::Contradiction {
            function: bdf("03:00.0")
        }]
    );
    let none = Machine::new(&text).topology();
    let reasons = make(&none, &join("03:00.0 04:00.0"), &PlanOptions::default()).unwrap_err();
    assert_eq!(reasons, [Infeasible::NoIommu]);
}

#[test]
fn without_root_nothing_is_planned() {
    let text = switch("acs=5f/1d", "").replace(" port=", " visible=40 port=");
    let topology = Machine::new(&text).started();
    let reasons = make(&topology, &join("03:00.0 04:00.0"), &PlanOptions::default()).unwrap_err();
    assert!(
        reasons[0].to_string().ends_with("run as root"),
        "{}",
        reasons[0]
    );
}

#[test]
fn virtual_functions_stay_where_they_are_made() {
    let text = "
00:01.0 root-port acs=5f/1d
  01:00.0 upstream
    02:00.0 downstream acs=5f/1d
      03:00.0 endpoint sriov=2
      03:10.0 endpoint vf=03:00.0
      03:10.1 endpoint vf=03:00.0
    02:01.0 downstream acs=5f/1d
      04:00.0 endpoint
";
    let topology = Machine::new(text).cpu("AuthenticAMD", 0x17).started();
    // To be joined within the port they would have to be found again.
    let reasons = make(&topology, &join("03:10.0 03:10.1"), &PlanOptions::default()).unwrap_err();
    assert!(matches!(
        reasons[..],
        [Infeasible::VirtualFunction { physical, .. }] if physical == bdf("03:00.0")
    ));
    // With their port goes their physical function, and with that they do.
    let found = plan(&topology, &join("03:00.0 04:00.0"));
    assert_eq!(words(&found.lost), "03:10.0 03:10.1");
    assert_eq!(
        found.objections,
        [
            Warning::Loses {
                function: bdf("03:10.0")
            },
            Warning::Loses {
                function: bdf("03:10.1")
            }
        ]
    );
    let reasons = make(&topology, &join("03:10.0 04:00.0"), &PlanOptions::default()).unwrap_err();
    assert!(
        matches!(reasons[..], [Infeasible::VirtualFunction { .. }]),
        "{reasons:?}"
    );
}

#[test]
fn the_kernel_argument_for_the_same_at_boot() {
    let topology = Machine::new(&switch("acs=5f/1d", "")).started();
    let accepted = PlanOptions {
        expose: set("05:00.0 06:00.0"),
        ..PlanOptions::default()
    };
    let found = make(&topology, &join("03:00.0 04:00.0"), &accepted).unwrap();
    let boot = found.boot.unwrap();
    assert_eq!(
        boot.argument,
        "pci=config_acs=0010101@0000:00:04.0;00x0001@0000:00:04.0/00.0/00.0;00x0001@0000:00:04.0/00.0/01.0"
            .replace("0010101", "0x10101")
            .replace("00x0001", "0x10001")
    );
    assert!(boot.joins);
    // At boot the root port lacks it for good, so all of the switch comes along.
    assert_eq!(words(&boot.wider), "05:00.0 06:00.0");
    let restarted = Machine::new(&switch("acs=5f/1d", ""))
        .arguments(&boot.argument)
        .started();
    assert!(iommu_group::Groups::found(&restarted).together(bdf("03:00.0"), bdf("04:00.0")));
}

#[test]
fn present_arguments_are_kept_behind_the_new_ones() {
    let machine = Machine::new(&switch("", "")).arguments("pci=config_acs=x@00:05.0");
    let topology = machine.started();
    let boot = plan(&topology, &join("03:00.0 04:00.0")).boot.unwrap();
    assert_eq!(
        boot.argument,
        "pci=config_acs=0x10x01@0000:00:04.0;x@00:05.0".replace("0x10x01", "0x10101")
    );
}

#[test]
fn files_that_are_no_plans() {
    let topology = Machine::new(&switch("", "")).started();
    let good = plan(&topology, &join("03:00.0 04:00.0")).to_json();
    assert!(matches!(Plan::from_json("{"), Err(PlanError::Json(_))));
    let other = good.replacen("regroup-plan", "pci-topology", 1);
    assert!(matches!(
        Plan::from_json(&other),
        Err(PlanError::Format { .. })
    ));
    let later = good.replacen("\"version\": 2", "\"version\": 3", 1);
    assert!(matches!(
        Plan::from_json(&later),
        Err(PlanError::Version { found: 3 })
    ));
    let strange = good.replacen("\"unplug\"", "\"unplugged\"", 1);
    assert!(matches!(Plan::from_json(&strange), Err(PlanError::Json(_))));
}
