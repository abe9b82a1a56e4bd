//! Invariant 3: devices that reach others, or are reached, without the IOMMU.

use super::*;
use crate::Topology;
use crate::policy::{Consent, Policy};

/// 03:00.0 for a VM and the host's own drive 04:00.0 below a switch without ACS, 05:00.0 below another root port.
const WITHOUT_ACS: &str =
    include_str!("../../../../../resources/topologies/switch-without-acs.json");
/// The same as another user than root sees it.
const UNPRIVILEGED: &str = include_str!("../../../../../resources/topologies/unprivileged.json");
/// Four drives for VMs below a switch whose ports redirect.
const WITH_ACS: &str = include_str!("../../../../../resources/topologies/switch-four-nvme.json");
/// The same; 03:00.0 and 04:00.0 are joined, and so reach each other across the switch.
const JOINED: &str = include_str!("../../../../../resources/topologies/switch-joined.json");

fn host(text: &str, policy: Policy) -> HostSnapshot {
    HostSnapshot::new(Topology::from_fixture(text).unwrap(), policy)
}

fn set(devices: &str) -> BTreeSet<Sbdf> {
    devices.split_whitespace().map(sbdf).collect()
}

/// The check of one device that asks for no P2P.
fn check(host: &HostSnapshot, device: &str, named: &str) -> Result<Assignment, Refusal> {
    let request = AssignmentRequest {
        devices: vec![super::device(device, 4, false)],
        others: &BTreeSet::new(),
        expose: &set(named),
        departed: None,
    };
    check_assignment(host, request)
}

#[test]
fn invariant_3_a_device_that_reaches_the_hosts_drive_is_refused() {
    let host = host(WITHOUT_ACS, Policy::default());
    let refusal = check(&host, "03:00.0", "").unwrap_err();
    assert!(matches!(refusal.reasons[..], [Reason::Exposed(_)]));
    assert_eq!(
        format!("{refusal:#}"),
        "0000:03:00.0 reaches 0000:04:00.0 without the IOMMU, through 0000:02:00.0, and 0000:04:00.0 is the host's \
         (driver nvme)\n       \
         p2pctl explain 0000:03:00.0 0000:04:00.0   says why\n       \
         0000:02:00.0 cannot redirect: give all of these devices to one VM, or put them below other ports\n       \
         or accept it by name: --expose 0000:04:00.0, or [[expose]] in the policy file"
    );
}

#[test]
fn invariant_3_ports_that_redirect_let_a_device_in() {
    let host = host(WITH_ACS, Policy::default());
    let assigned = check(&host, "03:00.0", "").unwrap();
    assert_eq!(assigned.exposures, []);
}

#[test]
fn invariant_3_peers_that_reach_their_neighbours_are_refused_and_so_are_the_neighbours() {
    let host = host(JOINED, Policy::default());
    let exposed = |device: &str| -> Vec<Sbdf> {
        let refusal = check(&host, device, "").unwrap_err();
        let [Reason::Exposed(exposed)] = &refusal.reasons[..] else {
            panic!("{refusal}");
        };
        exposed.iter().map(|one| one.exposure.function).collect()
    };
    // The peer shares the group, which one VM has as a whole.
    assert_eq!(exposed("03:00.0"), [sbdf("05:00.0"), sbdf("06:00.0")]);
    assert_eq!(exposed("05:00.0"), [sbdf("05:00.0")]);
    assert!(check(&host, "03:00.0", "05:00.0 06:00.0").is_ok());
    assert!(check(&host, "03:00.0", "05:00.0").is_err());
}

#[test]
fn an_exposure_that_can_be_closed_is_refused_with_the_command_that_closes_it() {
    let topology = WITH_ACS.replace("5f001d", "5f0011");
    let host = host(&topology, Policy::default());
    let refusal = check(&host, "03:00.0", "")
        .map_err(|refusal| format!("{refusal:#}"))
        .unwrap_err();
    for part in [
        "p2pctl apply --isolate 0000:03:00.0",
        "0000:04:00.0 may be another VM's",
        "0000:04:00.0, 0000:05:00.0, 0000:06:00.0 reach 0000:03:00.0 without the IOMMU",
        "--expose 0000:03:00.0,0000:04:00.0,0000:05:00.0,0000:06:00.0, or",
        "those that reach it may be another VM's",
    ] {
        assert!(refusal.contains(part), "{part} is not in: {refusal}");
    }
}

#[test]
fn an_exposure_is_accepted_by_name_and_is_told() {
    let text = "[[expose]]\nfunction = '04:00.0'\nwhy = 'encrypted'";
    let policy = Policy::parse("p.toml", text).unwrap();
    let by_file = check(&host(WITHOUT_ACS, policy), "03:00.0", "").unwrap();
    assert_eq!(
        by_file.exposures[0].to_string(),
        "0000:03:00.0 reaches 0000:04:00.0 without the IOMMU, through 0000:02:00.0; accepted: encrypted (rule at p.toml:1)"
    );
    let host = host(WITHOUT_ACS, Policy::default());
    let by_name = check(&host, "03:00.0", "04:00.0").unwrap();
    assert_eq!(by_name.exposures[0].consent, Some(Consent::Named));
    // The device that is reached is to be named, not the one that reaches it.
    assert!(check(&host, "03:00.0", "03:00.0 02:00.0").is_err());
}

#[test]
fn what_is_up_to_the_root_complex_is_told_and_not_refused() {
    let host = host(WITHOUT_ACS, Policy::default());
    let assigned = check(&host, "05:00.0", "").unwrap();
    for exposed in &assigned.exposures {
        assert!(!exposed.exposure.needs_consent(), "{exposed}");
    }
}

#[test]
fn what_departed_from_the_vm_comes_back_one_by_one() {
    let both = WITHOUT_ACS.replace("\"nvme\"", "\"vfio-pci\"");
    let newcomer = device("03:00.0", 4, false);
    let exposed = |text: &str, others: &str, departed: &str| {
        let host = host(text, Policy::default());
        host.exposures_of_newcomer(&newcomer, &set(others), &set(departed), &set(""))
            .iter()
            .filter(|exposed| exposed.is_refused())
            .map(|exposed| exposed.exposure.function)
            .collect::<Vec<_>>()
    };
    assert_eq!(exposed(&both, "", ""), [sbdf("03:00.0"), sbdf("04:00.0")]);
    assert_eq!(exposed(&both, "", "04:00.0"), []);
    assert_eq!(exposed(&both, "04:00.0", ""), []);
    // The host has taken it meanwhile.
    assert_eq!(exposed(WITHOUT_ACS, "", "04:00.0"), [sbdf("04:00.0")]);
}

#[test]
fn what_changed_around_others_does_not_keep_a_newcomer_out() {
    let host = host(WITHOUT_ACS, Policy::default());
    let newcomer = device("05:00.0", 6, false);
    let exposures = host.exposures_of_newcomer(&newcomer, &set("03:00.0"), &set(""), &set(""));
    assert!(exposures.iter().all(|exposed| !exposed.is_refused()));
}

#[test]
fn what_could_not_be_read_is_refused_with_who_can_read_it() {
    let host = host(UNPRIVILEGED, Policy::default());
    let refusal = check(&host, "03:00.0", "")
        .map_err(|refusal| format!("{refusal:#}"))
        .unwrap_err();
    for part in [
        "0000:03:00.0 may reach 0000:04:00.0 without the IOMMU, through 0000:01:00.0, which could not be read",
        "run as root if 0000:01:00.0 cannot be read",
    ] {
        assert!(refusal.contains(part), "{part} is not in: {refusal}");
    }
    assert!(!refusal.contains("--isolate"), "{refusal}");
}
