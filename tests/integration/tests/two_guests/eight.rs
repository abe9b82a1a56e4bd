//! Eight devices of one guest.

use std::collections::BTreeMap;

use lab::Daemon;
use lab::live::Live;
use lab::protocol::Exit;
use lab::report::Finding;

use crate::{ENGINES, apart, lab, name, vm};

/// How often each device was told about, by event.
fn count(live: &mut Live<'_>) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for event in live.news(3 * ENGINES.len()) {
        *counts.entry(event).or_insert(0) += 1;
    }
    counts
}

#[test]
fn eight_devices_change_in_one_transaction_each_unplugged_and_plugged_once() {
    let lab = lab();
    let mut live = Live::boot_vm(&lab, &vm(&ENGINES, None));
    let daemon = Daemon::start(&lab, &["web"]);
    let expected: BTreeMap<_, _> = ENGINES
        .iter()
        .flat_map(|bdf| {
            let events = ["device-added", "device-removed", "device-unplug-requested"];
            events.map(|event| ((event.to_owned(), name(bdf).to_owned()), 1))
        })
        .collect();
    let all = |p2p: bool| ENGINES.map(|bdf| (name(bdf).to_owned(), p2p));
    let groups = || ENGINES.map(|bdf| lab.group(bdf).unwrap());

    let mut join = vec!["--join"];
    join.extend(ENGINES);
    daemon.apply(&join).ok().unwrap();
    assert_eq!(count(&mut live), expected);
    assert_eq!(live.peers(), all(true));
    let [first, others @ ..] = groups();
    assert!(others.iter().all(|group| *group == first));
    // Each of the others reaches the last.
    live.wait_for_engines(ENGINES.len());
    let at = live.guest("head -n 1 $(grep -l 0x11e8 /sys/bus/pci/devices/*/device | tail -n 1 | xargs dirname)/resource");
    let at = at
        .split_ascii_whitespace()
        .find(|word| word.starts_with("0x"))
        .unwrap();
    let findings = Finding::in_console(&live.guest(&format!("guest-probe aim {at}")));
    let arrived = findings.iter().filter(|finding| match finding {
        Finding::Aimed { read, expected, .. } => read == expected,
        _ => false,
    });
    assert_eq!(arrived.count(), ENGINES.len() - 1, "{findings:?}");

    daemon.apply(&apart(&ENGINES)).ok().unwrap();
    assert_eq!(count(&mut live), expected);
    assert_eq!(live.peers(), all(false));
    let mut groups = groups().to_vec();
    groups.sort_unstable();
    groups.dedup();
    assert_eq!(groups.len(), ENGINES.len());
    daemon.stop();
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
