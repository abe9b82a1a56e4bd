//! Requests that only a hostile or faulty function sends: with the requester ID of another function, or marked as
//! translated without having been. Ports block them or nobody does, as the model of the ports says.

use iommu_group::{RoutingModel, Sbdf};
use lab::report::Finding;
use lab::{Lab, TracedRequest, Way};

use crate::{
    A, B, C, LAB, NO_REDIRECT, PORT_A, REDIRECT, arrivals, at, mailbox, scan, set_acs, unbind,
};

const ROOT_PORT: &str = "0000:00:04.0";
/// A function of the root bus.
const INTEGRATED: &str = "0000:00:1f.2";

/// Where no switch has a window.
const IOVA: &str = "0x10000000";

/// Whether an endpoint uses memory, written and read.
fn hazard(lab: &Lab, words: &[&str]) -> (bool, bool) {
    let words = ["ram-hazard", A].iter().chain(words).copied();
    let output = lab.run(words).unwrap().ok().unwrap();
    match serde_json::from_str(&output).unwrap() {
        Finding::Mapped { written, read, .. } => (written, read),
        other => panic!("{other:?}"),
    }
}

/// What became of the requests of A while something was done.
fn ways(lab: &Lab, act: impl FnOnce()) -> Vec<TracedRequest> {
    let since = lab.trace().unwrap().len();
    act();
    let all = lab.trace().unwrap();
    let own = all.into_iter().skip(since).filter(|r| r.from == at(A));
    let own: Vec<_> = own.collect();
    assert!(!own.is_empty(), "A has sent nothing");
    own
}

/// Expects that all requests end at this port, or go up to the root complex.
#[track_caller]
fn assert_blocked_at(requests: &[TracedRequest], port: Option<Sbdf>) {
    for request in requests {
        let end = (request.way == Way::Blocked).then_some(request.at);
        assert_eq!(end, port, "{request:?}");
        assert_ne!(request.way, Way::Straight, "{request:?}");
    }
}

#[test]
fn a_function_uses_memory_of_another_in_its_name_unless_its_port_validates_sources() {
    let lab = LAB.turn();
    lab.bind_vfio(A).unwrap();
    lab.bind_vfio(C).unwrap();
    // Without a request in its name nobody uses the memory of C; that is seen in the first line.
    for (control, blocks) in [("001d", Some(PORT_A)), ("001c", None), ("005e", None)] {
        set_acs(&lab, PORT_A, control);
        let topology = scan(&lab);
        let predicted = RoutingModel::found(&topology).validating_port(at(A), at(C));
        assert_eq!(predicted, blocks.map(at), "{control}");
        let mut used = (false, false);
        let requests = ways(&lab, || used = hazard(&lab, &["--as", C, IOVA]));
        set_acs(&lab, PORT_A, REDIRECT);
        assert_blocked_at(&requests, predicted);
        let reached = predicted.is_none();
        assert_eq!(used, (reached, reached), "{control}");
    }
    unbind(&lab, &[A, C]);
}

#[test]
fn the_root_port_validates_sources_outside_of_its_buses() {
    let lab = LAB.turn();
    unbind(&lab, &[A, C]);
    for (port, root_port, blocks) in [
        ("001d", "001d", Some(PORT_A)),
        ("001c", "001d", Some(ROOT_PORT)),
        ("001c", "001c", None),
    ] {
        set_acs(&lab, PORT_A, port);
        set_acs(&lab, ROOT_PORT, root_port);
        let topology = scan(&lab);
        let predicted = RoutingModel::found(&topology).validating_port(at(A), at(INTEGRATED));
        let spoofed = format!("spoofed={INTEGRATED}");
        let requests = ways(&lab, || {
            let send = ["guest-probe", "send", IOVA, &spoofed];
            lab.run(send).unwrap().ok().unwrap();
        });
        set_acs(&lab, PORT_A, REDIRECT);
        set_acs(&lab, ROOT_PORT, REDIRECT);
        assert_eq!(predicted, blocks.map(at), "{port} {root_port}");
        assert_blocked_at(&requests, predicted);
    }
}

#[test]
fn forged_translated_requests_reach_memory_of_anybody_unless_a_port_blocks_translated_ones() {
    let lab = LAB.turn();
    lab.bind_vfio(A).unwrap();
    for (control, blocks) in [("001d", None), ("001f", Some(PORT_A))] {
        set_acs(&lab, PORT_A, control);
        let topology = scan(&lab);
        let predicted = RoutingModel::found(&topology).translation_blocking_port(at(A));
        assert_eq!(predicted, blocks.map(at), "{control}");
        let mut used = (false, false);
        let requests = ways(&lab, || used = hazard(&lab, &["--forged"]));
        set_acs(&lab, PORT_A, REDIRECT);
        assert!(requests.iter().all(|request| request.translated));
        assert_blocked_at(&requests, predicted);
        let reached = predicted.is_none();
        assert_eq!(used, (reached, reached), "{control}");
    }
    unbind(&lab, &[A]);
}

#[test]
fn one_copy_of_a_mib_arrives_whole_where_the_switch_routes_straight_and_nothing_of_it_where_not() {
    let lab = LAB.turn();
    unbind(&lab, &[A, B]);
    let copy = || lab.run(["guest-probe", "bulk", "plain", A, B]).unwrap();
    let mut redirected = None;
    let requests = ways(&lab, || redirected = Some(copy()));
    // Nothing is mapped, so that the first page ends the copy.
    assert_blocked_at(&requests, None);
    assert_eq!(requests.len(), 1);
    let stdout = redirected.unwrap().stdout;
    assert!(stdout.contains(r#""result":"nothing""#), "{stdout}");

    set_acs(&lab, PORT_A, NO_REDIRECT);
    let mut straight = None;
    let requests = ways(&lab, || straight = Some(copy()));
    set_acs(&lab, PORT_A, REDIRECT);
    let stdout = straight.unwrap().ok().unwrap();
    assert!(stdout.contains(r#""result":"ok""#), "{stdout}");
    let pages: Vec<u64> = requests.iter().map(|request| request.address).collect();
    let first = pages[0];
    let expected: Vec<u64> = (0..256).map(|page| first + page * 4096).collect();
    assert_eq!(pages, expected, "one request for each page");
    assert!(requests.iter().all(|request| request.way == Way::Straight));
    // Its mailbox, in another BAR, had none of it.
    assert!(mailbox(&lab, B) < first || mailbox(&lab, B) >= first + (1 << 20));
    assert_eq!(arrivals(&lab, B), 0);
}
