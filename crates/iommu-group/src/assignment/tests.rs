//! Which devices a VM may have.

use std::collections::BTreeSet;

use super::check::decide;
use super::*;
use crate::policy::{Consent, Origin, PolicyMatch, PolicyReason, Role};
use crate::{
    Address, AddressRange, BlockReason, Denial, Gpa, GroupId, GroupMember, HoleCause, MemoryHole,
    Placement, Route, Sbdf, Verdict,
};

mod exposures;

fn sbdf(text: &str) -> Sbdf {
    text.parse().unwrap()
}

fn member(text: &str, driver: Option<&str>) -> GroupMember {
    GroupMember {
        sbdf: Some(sbdf(text)),
        name: sbdf(text).to_string(),
        driver: driver.map(str::to_owned),
    }
}

fn device(text: &str, group: u32, p2p: bool) -> DeviceInfo {
    DeviceInfo {
        sbdf: sbdf(text),
        domain: p2p.then(DomainName::default),
        group: GroupId(group),
        members: vec![member(text, Some("vfio-pci"))],
        bus_addresses: Vec::new(),
        holes: Vec::new(),
        bridges: Vec::new(),
        policy: PolicyMatch::default(),
        unsafe_interrupts: None,
        hidden: false,
        placement: Placement::Anywhere,
    }
}

fn through_host_bridge(_: Sbdf, _: Sbdf) -> Verdict {
    Verdict::Allowed {
        route: Route::HostBridge,
        placement: Placement::Anywhere,
    }
}

fn check(devices: Vec<DeviceInfo>) -> Result<Assignment, Refusal> {
    decide(devices, through_host_bridge, Vec::new())
}

fn reasons(devices: Vec<DeviceInfo>) -> Vec<Reason> {
    check(devices).unwrap_err().reasons
}

#[test]
fn invariant_1_what_the_hardware_does_not_carry_is_refused() {
    let pair = vec![device("03:00.0", 6, true), device("04:00.0", 6, true)];
    let one_way = |from: Sbdf, to: Sbdf| {
        if from < to {
            through_host_bridge(from, to)
        } else {
            Verdict::Denied {
                reasons: vec![Denial::NoMemory { function: to }],
            }
        }
    };
    let refusal = decide(pair, one_way, Vec::new()).unwrap_err();
    assert_eq!(refusal.reasons.len(), 1);
    let text = format!("{refusal:#}");
    assert!(
        text.contains("0000:04:00.0 cannot reach 0000:03:00.0"),
        "{text}"
    );
    assert!(text.contains("no memory BAR"), "{text}");
}

#[test]
fn weakness_1_neither_the_wish_nor_the_group_alone_gives_p2p() {
    let unknown = |from: Sbdf, to: Sbdf| match from < to {
        true => through_host_bridge(from, to),
        false => Verdict::Denied {
            reasons: vec![Denial::Route(BlockReason::PciBridge { bridge: to })],
        },
    };
    for (groups, verdict) in [
        ([6, 7], through_host_bridge as fn(_, _) -> _),
        ([6, 6], unknown),
    ] {
        let pair = ["03:00.0", "04:00.0"].into_iter().zip(groups);
        let pair = pair.map(|(text, group)| device(text, group, true));
        assert!(
            decide(pair.collect(), verdict, Vec::new()).is_err(),
            "{groups:?}"
        );
    }
}

#[test]
fn one_direct_route_puts_all_members_at_their_bus_addresses() {
    let pair = vec![device("03:00.0", 6, true), device("04:00.0", 6, true)];
    let verdict = |from: Sbdf, to: Sbdf| {
        if from < to {
            through_host_bridge(from, to)
        } else {
            Verdict::Allowed {
                route: Route::SwitchLocal,
                placement: Placement::AtBusAddress,
            }
        }
    };
    let assigned = decide(pair, verdict, Vec::new()).unwrap();
    for member in &assigned.domains[0] {
        assert_eq!(member.placement, Placement::AtBusAddress);
    }
}

#[test]
fn invariant_3_interrupts_that_are_not_isolated_are_refused_unless_accepted() {
    let with = |consent: Option<Consent>| {
        ["03:00.0", "04:00.0"].map(|text| DeviceInfo {
            unsafe_interrupts: Some(UnsafeInterrupts {
                modules: vec!["vfio_iommu_type1".to_owned()],
                consent: consent.clone(),
            }),
            ..device(text, 6, false)
        })
    };
    // The host is one: it is said once.
    let [reason] = reasons(with(None).into()).try_into().unwrap();
    let said = reason.to_string();
    for words in [
        "allow_unsafe_interrupts of vfio_iommu_type1 is set",
        "\n       echo N > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        "[unsafe-interrupts] in the policy file",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let assigned = check(with(Some(Consent::Named)).into()).unwrap();
    let accepted = assigned.unsafe_interrupts.unwrap().to_string();
    assert!(accepted.ends_with("is set; accepted by name"), "{accepted}");
}

fn ruled(text: &str, role: Role) -> DeviceInfo {
    DeviceInfo {
        policy: PolicyMatch {
            role,
            why: "measured".to_owned(),
            origin: Origin::BuiltIn,
        },
        ..device(text, 6, true)
    }
}

fn hidden(assigned: &Assignment) -> Vec<bool> {
    let domain = &assigned.domains[0];
    domain.iter().map(|member| member.hidden).collect()
}

#[test]
fn weakness_2_what_is_no_target_is_hidden_and_needs_no_route_to_it() {
    let pair = vec![
        ruled("03:00.0", Role::Peer),
        ruled("04:00.0", Role::InitiatorOnly),
    ];
    let one_way = |from: Sbdf, to: Sbdf| {
        if to == sbdf("03:00.0") {
            through_host_bridge(from, to)
        } else {
            Verdict::Denied {
                reasons: vec![Denial::NoMemory { function: to }],
            }
        }
    };
    assert_eq!(
        hidden(&decide(pair, one_way, Vec::new()).unwrap()),
        [false, true]
    );
}

#[test]
fn beside_a_target_its_partner_is_hidden() {
    let pair = vec![
        ruled("03:00.0", Role::TargetOnly),
        device("04:00.0", 6, true),
    ];
    assert_eq!(hidden(&check(pair).unwrap()), [false, true]);
}

#[test]
fn policy_refuses_by_device_and_rule() {
    let pair = vec![ruled("03:00.0", Role::Never), device("04:00.0", 6, true)];
    let text = check(pair)
        .map_err(|refusal| format!("{refusal:#}"))
        .unwrap_err();
    for part in ["0000:03:00.0", "measured", "built-in rule"] {
        assert!(text.contains(part), "{part} is not named in: {text}");
    }
    let never = device("03:00.0", 6, false);
    let never = DeviceInfo {
        domain: None,
        policy: ruled("03:00.0", Role::Never).policy,
        ..never
    };
    assert!(check(vec![never]).is_ok(), "policy is about P2P");
}

#[test]
fn invariant_2_a_rule_that_the_iommu_cannot_enforce_is_refused() {
    let pair = || {
        vec![
            ruled("03:00.0", Role::Peer),
            ruled("04:00.0", Role::InitiatorOnly),
        ]
    };
    let across = |_, _| Verdict::Allowed {
        route: Route::SwitchLocal,
        placement: Placement::AtBusAddress,
    };
    let reasons = decide(pair(), across, Vec::new()).unwrap_err().reasons;
    assert!(
        matches!(reasons[..], [Reason::Policy(PolicyReason::Past { .. })]),
        "{reasons:?}"
    );
    let translated = |_, _| Verdict::Allowed {
        route: Route::SwitchLocalTranslated,
        placement: Placement::Anywhere,
    };
    assert_eq!(
        hidden(&decide(pair(), translated, Vec::new()).unwrap()),
        [false, true]
    );
}

#[test]
fn peers_of_one_group_share_a_domain() {
    let a = device("03:00.0", 6, true);
    let b = device("04:00.0", 6, true);
    let c = device("05:00.0", 7, false);
    let assigned = check(vec![a, b, c]).unwrap();
    assert_eq!(assigned.domains.len(), 1);
    assert_eq!(assigned.domains[0].len(), 2);
    assert_eq!(assigned.unshared.len(), 1);
}

#[test]
fn invariant_1_peers_of_two_groups_are_refused_naming_both() {
    let a = device("03:00.0", 6, true);
    let b = device("04:00.0", 7, true);
    let refusal = check(vec![a, b]).unwrap_err();
    let text = format!("{refusal:#}");
    for part in ["0000:03:00.0", "0000:04:00.0", "group 6", "group 7"] {
        assert!(text.contains(part), "{part} is not named in: {text}");
    }
}

#[test]
fn invariant_7_without_p2p_nothing_is_in_a_domain() {
    let a = device("03:00.0", 6, false);
    let b = device("04:00.0", 6, false);
    let assigned = check(vec![a, b]).unwrap();
    assert!(assigned.domains.is_empty());
    assert_eq!(assigned.unshared.len(), 2);
}

fn named(text: &str, group: u32, domain: &str) -> DeviceInfo {
    DeviceInfo {
        domain: Some(DomainName::Named(domain.to_owned())),
        ..device(text, group, true)
    }
}

#[test]
fn a_vm_may_have_a_domain_for_each_of_its_groups() {
    let assigned = check(vec![
        named("03:00.0", 6, "left"),
        named("05:00.0", 7, "right"),
        named("04:00.0", 6, "left"),
    ])
    .unwrap();
    let sizes: Vec<_> = assigned.domains.iter().map(Vec::len).collect();
    assert_eq!(sizes, [2, 1]);
}

#[test]
fn a_group_is_not_split_between_domains() {
    let pair = vec![named("03:00.0", 6, "left"), named("04:00.0", 6, "right")];
    assert!(matches!(reasons(pair)[..], [Reason::SplitGroup { .. }]));
}

#[test]
fn a_group_is_not_split_between_contexts() {
    let a = device("03:00.0", 6, true);
    let b = device("04:00.0", 6, false);
    let expected = Reason::SplitGroup {
        a: sbdf("03:00.0"),
        b: sbdf("04:00.0"),
        group: GroupId(6),
    };
    assert_eq!(reasons(vec![a, b]), [expected]);
}

#[test]
fn a_device_given_twice_is_refused() {
    let a = device("03:00.0", 6, true);
    let b = device("03:00.0", 6, false);
    assert_eq!(reasons(vec![a, b]), [Reason::Twice(sbdf("03:00.0"))]);
}

#[test]
fn a_device_of_the_host_is_refused() {
    for driver in [None, Some("nvme")] {
        let mut a = device("03:00.0", 6, false);
        a.members = vec![member("03:00.0", driver)];
        let expected = Reason::NotBound {
            sbdf: sbdf("03:00.0"),
            driver: driver.map(str::to_owned),
        };
        assert_eq!(reasons(vec![a]), [expected]);
    }
}

#[test]
fn a_neighbour_of_the_host_is_refused_by_name() {
    let mut a = device("03:00.0", 6, false);
    a.members.push(member("04:00.0", Some("e1000e")));
    let text = check(vec![a])
        .map_err(|refusal| format!("{refusal:#}"))
        .unwrap_err();
    assert!(
        text.contains("0000:04:00.0") && text.contains("e1000e"),
        "{text}"
    );
}

#[test]
fn neighbours_that_do_no_dma_of_the_host_are_fine() {
    for driver in [
        None,
        Some("pcieport"),
        Some("pci-stub"),
        Some("mlx5_vfio_pci"),
    ] {
        let mut a = device("03:00.0", 6, true);
        a.members.push(member("02:00.0", driver));
        assert!(check(vec![a]).is_ok(), "{driver:?}");
    }
}

#[test]
fn every_reason_is_told_at_once() {
    let a = device("03:00.0", 6, true);
    let b = device("04:00.0", 7, true);
    let mut c = device("05:00.0", 8, false);
    c.members = vec![member("05:00.0", None)];
    assert_eq!(reasons(vec![a, b, c]).len(), 2);
}

#[test]
fn a_device_that_runs_is_not_changed_by_one_that_comes() {
    let alone = || check(vec![device("04:00.0", 6, true)]).unwrap();
    let running = alone().domains.remove(0);
    let beside = |other: DeviceInfo| check(vec![running[0].clone(), other]).unwrap();
    let peers = beside(device("03:00.0", 6, true));
    assert!(peers.keeps(running.iter()).is_ok());
    let target = beside(ruled("03:00.0", Role::TargetOnly));
    let expected = Reason::Runs {
        sbdf: sbdf("04:00.0"),
        change: Change::Hide,
    };
    assert_eq!(
        target.keeps(running.iter()).unwrap_err().reasons,
        [expected]
    );
    let hidden: Vec<_> = target.domains[0].to_vec();
    assert!(target.keeps(hidden.iter()).is_ok());
    let shown = peers.keeps(hidden.iter()).unwrap_err().reasons;
    assert!(matches!(
        shown[..],
        [Reason::Runs {
            change: Change::Show,
            ..
        }]
    ));
    let pair = vec![device("03:00.0", 6, true), running[0].clone()];
    let across = |_, _| Verdict::Allowed {
        route: Route::SwitchLocal,
        placement: Placement::AtBusAddress,
    };
    let moved = decide(pair, across, Vec::new()).unwrap();
    let reasons = moved.keeps(running.iter()).unwrap_err().reasons;
    assert!(matches!(
        reasons[..],
        [Reason::Runs {
            change: Change::Move,
            ..
        }]
    ));
}

#[test]
fn memory_that_is_there_first_must_be_out_of_every_hole() {
    let hole = MemoryHole {
        range: 0x8000_0000..=0x803f_ffff,
        port: sbdf("01:00.0"),
        cause: HoleCause::Switch,
        certain: true,
    };
    let device = DeviceInfo {
        holes: vec![hole.clone()],
        ..device("03:00.0", 6, false)
    };
    let memory = |start, len| AddressRange::new(Gpa::new(start), len).unwrap();
    let (below, above) = (memory(0, 0x8000_0000), memory(0x8040_0000, 0x1000));
    assert!(device.reaches_memory([below, above]).is_ok());
    for memory in [memory(0, 0x8000_1000), memory(0x803f_f000, 0x1000)] {
        let refusal = device.reaches_memory([below, memory]).unwrap_err();
        let (sbdf, hole) = (device.sbdf, hole.clone());
        assert_eq!(refusal.reasons, [Reason::Memory { sbdf, memory, hole }]);
        assert!(
            format!("{refusal:#}")
                .contains("0x80000000-0x803fffff, which the switch at 0000:01:00.0"),
            "{refusal}"
        );
    }
}

#[test]
fn devices_are_unshared_unless_all_are_in_one_domain() {
    let domains = |names: &[&str]| {
        let domain = |name: &&str| match *name {
            "-" => None,
            "" => Some(DomainName::Unnamed),
            name => Some(DomainName::Named(name.to_owned())),
        };
        has_unshared(names.iter().map(domain).collect::<Vec<_>>())
    };
    for none in [&[][..], &["-"], &[""], &["", "", ""], &["a", "a"]] {
        assert!(!domains(none), "{none:?}");
    }
    for some in [
        &["-", "-"][..],
        &["", "-"],
        &["-", "a"],
        &["", "a"],
        &["a", "a", "b"],
    ] {
        assert!(domains(some), "{some:?}");
    }
}
