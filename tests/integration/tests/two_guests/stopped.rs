//! One VMM is stopped, with many clients waiting for it.

use lab::live::{Live, PATIENCE, api_socket};
use lab::protocol::Exit;
use lab::report::Outcome;
use lab::{Daemon, Lab};

use crate::{ENGINES, apart, lab, probe, vm};

/// How many clients of the stopped VMM wait.
const PENDING: u32 = 300;
/// How long an answer may take that needs nothing of the stopped VMM, in hundredths of a second.
const SOON: u64 = 100;

/// Runs a command of p2pctl in the lab host, which must succeed; how long it took there, in hundredths of a second.
fn time(lab: &Lab, words: &[&str]) -> u64 {
    let now = "read now x < /proc/uptime; echo ${now%.*}${now#*.}";
    let script = format!(
        "{now}; p2pctl {} >/dev/null || exit; {now}",
        words.join(" ")
    );
    let output = lab.command(["sh", "-c", &script]).deadline(PATIENCE);
    let output = output.run().unwrap().ok().unwrap();
    let times: Vec<u64> = output.lines().map(|line| line.parse().unwrap()).collect();
    times[1] - times[0]
}

#[test]
fn a_stopped_vmm_with_many_clients_delays_nothing_for_the_other() {
    const CONTINUE: &str = "kill -CONT $(cat /tmp/live/db/pid)";
    let lab = lab();
    let [a, b, c, ..] = ENGINES;
    let mut web = Live::boot_vm(&lab, &vm(&[a, b], None));
    let db = Live::boot_named(&lab, "db", &vm(&[c], None));
    let daemon = Daemon::start(&lab, &["web", "db"]);
    let (join, isolate) = (["apply", "--join", a, b], apart(&[a, b]));
    let isolate: Vec<&str> = ["apply"].into_iter().chain(isolate).collect();
    let alone = [&join[..], &isolate].map(|words| time(&lab, words));

    lab.sh("kill -STOP $(cat /tmp/live/db/pid)").unwrap();
    let pending = PENDING.to_string();
    let words = ["vm-call", &api_socket("db"), "hold", &pending];
    let words = words.map(str::to_owned).into_iter();
    // It reads what nobody writes.
    let script = format!("sleep 3600 | {}", words.collect::<Vec<_>>().join(" "));
    let held = lab.command(["sh", "-c", &script]).deadline(PATIENCE);
    let mut held = held.spawn().unwrap();
    held.wait_for("held", PATIENCE).unwrap();

    for words in [&["status"][..], &["plan", "--join", a, b]] {
        let took = time(&lab, words);
        eprintln!("{}: {} ms", words[0], took * 10);
        assert!(took < SOON, "{words:?} took {took}/100 s");
    }
    let beside = [&join[..], &isolate].map(|words| time(&lab, words));
    eprintln!("join and isolate: {alone:?}/100 s, beside the stopped VMM {beside:?}/100 s");
    for (alone, beside) in alone.into_iter().zip(beside) {
        assert!(beside < 2 * alone + SOON, "{beside}/100 s, and was {alone}");
    }
    drop(held);
    lab.sh(CONTINUE).unwrap();
    assert_eq!(
        probe(&mut web),
        (vec![Outcome::Ok; 2], vec![Outcome::Nothing; 4])
    );
    daemon.stop();
    for live in [web, db] {
        assert_eq!(live.power_off().exit, Exit::Code(0));
    }
}
