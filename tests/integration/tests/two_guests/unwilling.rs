//! One guest does not let go of its devices.

use std::time::Instant;

use lab::Daemon;
use lab::live::{Live, PATIENCE};
use lab::protocol::Exit;
use lab::report::Outcome;

use crate::{ENGINES, apart, lab, peers_vm, probe, state, vm};

/// How long guests have to let go of a device, in seconds: long enough for one under emulation that does.
const GIVEN: u32 = 60;

#[test]
fn a_guest_that_does_not_let_go_ends_the_change_and_everybody_has_everything_back() {
    let lab = lab();
    let [a, b, c, d, ..] = ENGINES;
    let alone = ["p2pctl", "apply", "--join", c, d];
    lab.run(alone).unwrap().ok().unwrap();
    // Its kernel does not know slots.
    let mut web = Live::boot_vm(&lab, &vm(&[a, b], None).kernel_words("acpiphp.disable=1"));
    let mut db = Live::boot_named(&lab, "db", &peers_vm(&[c, d]));
    let daemon = Daemon::start(&lab, &["web", "db"]);
    let (before, had) = (state(&lab), [web.peers(), db.peers()]);

    // What one guest shall get, the other shall lose.
    let mut goals = vec!["--join", a, b];
    goals.extend(apart(&[c, d]));
    let change = daemon.begin(GIVEN, &goals);
    // The other one is not kept waiting for it.
    let mut gone = db.news(4);
    gone.sort();
    assert_eq!(
        gone,
        [
            ("removed", "c"),
            ("removed", "d"),
            ("unplug-requested", "c"),
            ("unplug-requested", "d")
        ]
        .map(|(event, id)| (format!("device-{event}"), id.to_owned()))
    );
    let mut asked = web.news(2);
    asked.sort();
    assert_eq!(
        asked,
        ["a", "b"].map(|id| ("device-unplug-requested".to_owned(), id.to_owned()))
    );

    let output = change.wait().unwrap();
    assert_eq!(output.code(), Some(1), "{output:?}");
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    let told = words.join(" ");
    for word in [
        "failed, and undone: the host is as it was",
        "the guest of web did not release",
        "within 60 s",
    ] {
        assert!(told.contains(word), "{word}: {output:?}");
    }
    let started = Instant::now();
    while state(&lab) != before {
        assert!(started.elapsed() < PATIENCE, "{}\n{before}", state(&lab));
        lab.run(["usleep", "200000"]).unwrap().ok().unwrap();
    }
    assert_eq!([web.peers(), db.peers()], had);
    let mut back = db.news(2);
    back.sort();
    assert_eq!(
        back,
        ["c", "d"].map(|id| ("device-added".to_owned(), id.to_owned()))
    );
    let mut kept = web.news(2);
    kept.sort();
    assert_eq!(
        kept,
        ["a", "b"].map(|id| ("device-unplug-timeout".to_owned(), id.to_owned()))
    );
    for (live, peers) in [(&mut web, Outcome::Nothing), (&mut db, Outcome::Ok)] {
        assert_eq!(probe(live), (vec![Outcome::Ok; 2], vec![peers; 4]));
    }

    // Nothing is left that stands in the way of what can be done.
    let told = daemon.apply(&apart(&[c, d])).ok().unwrap();
    assert!(told.contains(": done in "), "{told}");
    assert_eq!(probe(&mut db).1, [Outcome::Nothing; 4]);
    assert_eq!(web.news(0), []);
    daemon.stop();
    for live in [web, db] {
        assert_eq!(live.power_off().exit, Exit::Code(0));
    }
}
