//! Every pair of faults in a transaction and its recovery.
//!
//! Ways that come to the same state, with as many faults to come, go on alike: only the first of them does. A state is
//! what the host, the guest and the state directory have, and where the process is.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs;
use std::sync::{Arc, Mutex};

use hotplug::regroup::{Difference, Finished, Outcome, Regroup, RegroupError, Report, Vmm};
use iommu_group::{Plan, Sbdf};

use crate::faults::{Event, Faults, Kind, Step, World};
use crate::guests::{Guest, Mood};
use crate::machine::Snapshot;
use crate::{A, B, Bench, brief, killed, sbdf};

/// The port above `A`.
const PORT: &str = "0000:02:00.0";

type Setting = fn() -> (Bench, Plan);

type Way = Vec<(usize, Event)>;

const WORLD: [World; 9] = [
    World::DeviceGone,
    World::PortGone,
    World::DeviceReplaced,
    World::PortReplaced,
    World::Renumbered,
    World::Stalls,
    World::Refuses,
    World::VmDies,
    World::DiesAsking,
];

/// What is known already, and what is to be seen yet.
#[derive(Default)]
struct Frontier {
    seen: HashSet<u64>,
    /// What a process that has died has left.
    left: HashSet<u64>,
    ways: VecDeque<Way>,
}

/// What may go wrong.
#[derive(Clone, Copy)]
enum Choice {
    /// Any step fails, or the process ends before it; and then again.
    Pairs,
    /// The same, and then the process that recovers ends before any step.
    EndsTwice,
    /// Others do something at any time, and then the process ends; or the other way round.
    Others,
}

struct Explorer {
    setting: Setting,
    faults: Choice,
    old: Snapshot,
    new: Snapshot,
    /// How many transactions there were before.
    before: usize,
}

/// The two devices of a VM are joined.
fn join() -> (Bench, Plan) {
    let bench = Bench::small("switch-four-nvme.json", "7.2.12");
    let plan = bench.join(&[A, B]);
    (bench, plan)
}

/// One leaves a group of three: no kernel makes the old state by itself.
fn split() -> (Bench, Plan) {
    let bench = Bench::new();
    bench.apply(&bench.join(&[A, B, crate::C]), &[]).unwrap();
    let plan = bench.isolate(&[A]);
    (bench, plan)
}

/// A join under a kernel that gives to drivers what it finds, on ports without ACS.
fn join_6_12() -> (Bench, Plan) {
    let bench = Bench::small("lab/edu-four-ports.json", "6.12.95");
    let plan = bench.join(&[A, B]);
    (bench, plan)
}

impl Explorer {
    fn new(setting: Setting, faults: Choice) -> Self {
        let (bench, plan) = setting();
        let old = bench.machine.snapshot();
        let before = finished(&bench).len();
        let report = bench.apply(&plan, &[&guest()]).unwrap();
        assert_eq!(report.outcome, Outcome::New);
        let new = bench.machine.snapshot();
        Self {
            setting,
            faults,
            old,
            new,
            before,
        }
    }

    /// Goes all ways; how many states there are, and how many ways led to them.
    fn explore(&self) -> (usize, usize) {
        let frontier = Arc::new(Mutex::new(Frontier::default()));
        let mut way = Some(Way::new());
        let mut ways = 0;
        while let Some(now) = way {
            self.go(&now, &frontier);
            ways += 1;
            way = frontier.lock().unwrap().ways.pop_front();
        }
        let seen = frontier.lock().unwrap().seen.len();
        (seen, ways)
    }

    fn go(&self, way: &Way, frontier: &Arc<Mutex<Frontier>>) {
        let (mut bench, plan) = (self.setting)();
        let guest = guest();
        let look = {
            let (frontier, way, faults) = (Arc::clone(frontier), way.clone(), self.faults);
            move |step: &Step| frontier.lock().unwrap().look(step, &way, faults)
        };
        let faults = Faults::new(way, Box::new(look));
        bench.watch(&faults);
        faults.set_guest(guest.state());
        let vmms = [&guest as &dyn Vmm];
        for process in 0.. {
            assert!(process < 5, "{way:?} comes to no end");
            faults.begin_process(if process == 0 { "apply" } else { "recover" });
            let mut result = Ok(None);
            let died = killed(|| {
                let regroup = Regroup::new(&bench.machine, &vmms, bench.state());
                let mut observe = |progress: &hotplug::regroup::Progress<'_>| {
                    faults.set_guest(guest.state());
                    if let Some(Event::World(event)) = faults.told(progress) {
                        happen(event, &bench, &guest);
                        faults.set_guest(guest.state());
                    }
                };
                result = if process == 0 {
                    regroup.apply(&plan, &mut observe).map(Some)
                } else {
                    let recovered = regroup.recover(&mut observe);
                    recovered.map(|recovered| recovered.report)
                };
            });
            faults.set_guest(guest.state());
            if faults.is_merged() {
                return;
            }
            guest.survives();
            if died {
                continue;
            }
            match result {
                Ok(report) => return self.check(way, &bench, &guest, &faults, report),
                // It could not begin, or not go on: then it can be called again.
                Err(RegroupError::State(_) | RegroupError::Host(_)) if is_open(&bench) => {}
                Err(RegroupError::State(_) | RegroupError::Host(_)) => {
                    return self.check(way, &bench, &guest, &faults, None);
                }
                Err(RegroupError::Refused(refusal)) => panic!("{way:?}: {refusal}"),
            }
        }
    }

    /// What must be so when nothing more is done.
    fn check(
        &self,
        way: &Way,
        bench: &Bench,
        guest: &Guest,
        faults: &Faults,
        report: Option<Report>,
    ) {
        let events = faults.events();
        faults.end();
        let mut report = report;
        let mut what = format!("{way:?}, {events} of them: {}", brief(report.as_ref()));
        for _ in 0..3 {
            if !is_open(bench) {
                break;
            }
            let told = report.as_ref().is_none_or(|report| report.open.is_some());
            assert!(told, "it is not said why it is not over: {what}");
            guest.heal();
            report = bench.recover(&[guest]);
            what = format!("{what}, then {}", brief(report.as_ref()));
        }
        assert!(!is_open(bench), "it does not come to an end: {what}");
        assert_eq!(*bench.machine.strayed.borrow(), [""; 0], "{what}");
        let ended = report.map(|report| (report.outcome, report.remains));
        // One that died after the end has left a record of it.
        let ended = ended.or_else(|| last_end(bench, self.before));
        let now = bench.machine.snapshot();
        let (wanted, remains) = match ended {
            Some((Outcome::New, remains)) => (&self.new, remains),
            Some((Outcome::Old, remains)) => (&self.old, remains),
            Some((Outcome::Rebooted, _)) => panic!("{what}"),
            None => (&self.old, Vec::new()),
        };
        let remains: Vec<String> = remains.iter().map(ToString::to_string).collect();
        let is_named = |at: &str| remains.iter().any(|line| line.contains(at));
        // What is below a port that is gone is gone too.
        let gone = |at: &Sbdf| {
            let told = [
                format!("{at} is gone"),
                format!("another device is where {at} was"),
            ];
            remains.iter().any(|line| told.contains(line))
        };
        let lost: BTreeSet<Sbdf> = self.old.functions.keys().copied().filter(gone).collect();
        for line in now.without(&lost).differences(&wanted.without(&lost)) {
            let mut words = line.split(['[', ' ', ',', ']']);
            let first = words.find(|word| word.parse::<Sbdf>().is_ok());
            let told = !remains.is_empty() && first.is_none_or(is_named);
            assert!(told, "{line} is not told of: {what}");
        }
        for device in ["dev-0000:03:00.0", "dev-0000:04:00.0"] {
            let at = device.trim_start_matches("dev-");
            assert!(
                guest.is_dead() || guest.has_id(device) || is_named(at),
                "{device} is not back: {what}"
            );
        }
    }
}

impl Frontier {
    /// Whether a state is new. If it is, everything that can go wrong there is to be seen.
    fn look(&mut self, step: &Step, way: &Way, faults: Choice) -> bool {
        if !self.seen.insert(step.key) {
            return false;
        }
        if step.events == 2 {
            return true;
        }
        let first = step.events == 0;
        let mut events = match (faults, step.kind) {
            (Choice::Others, Kind::Record) => {
                // Not twice, and in recovery when it is about to look at the host.
                let is_due = first || step.looks_next && way.iter().all(|(_, e)| *e == Event::Die);
                let world = WORLD.iter().filter(|_| is_due);
                world.copied().map(Event::World).collect()
            }
            (Choice::Others, _) | (_, Kind::Record) => Vec::new(),
            (Choice::EndsTwice, _) if !first => Vec::new(),
            // What fails once in undoing is tried again, and then it is as if it had not.
            (_, Kind::Host) if step.is_undoing => vec![Event::Stuck],
            (_, Kind::Host) => vec![Event::Fail, Event::Stuck],
            // After a record that cannot be written there are no others.
            (_, Kind::Disk) if step.is_append && first => vec![Event::Stuck, Event::FailsLate],
            (_, Kind::Disk) => vec![Event::Stuck],
        };
        if step.kind != Kind::Record && self.left.insert(step.left) {
            events.push(Event::Die);
        }
        for event in events {
            let mut next = way.clone();
            next.push((step.number, event));
            self.ways.push_back(next);
        }
        true
    }
}

fn finished(bench: &Bench) -> Vec<Finished> {
    bench.state().status("first").unwrap().finished
}

/// How the last transaction ended, by its journal, if it is not one of those before.
fn last_end(bench: &Bench, before: usize) -> Option<(Outcome, Vec<Difference>)> {
    let finished = finished(bench);
    if finished.len() == before {
        return None;
    }
    let journal = &finished.first()?.journal;
    let text = fs::read_to_string(journal).unwrap_or_default();
    let last: serde_json::Value = serde_json::from_str(text.lines().last()?).ok()?;
    let part = |name: &str| last.get(name).cloned();
    let outcome = serde_json::from_value(part("outcome")?).unwrap();
    let remains = serde_json::from_value(part("remains")?).unwrap();
    Some((outcome, remains))
}

fn happen(event: World, bench: &Bench, guest: &Guest) {
    let machine = &bench.machine;
    let mood = match event {
        World::DeviceGone => return machine.pull(sbdf(A)),
        World::PortGone => return machine.pull(sbdf(PORT)),
        World::DeviceReplaced => return machine.replace(sbdf(A)),
        World::PortReplaced => return machine.replace(sbdf(PORT)),
        World::Renumbered => return machine.renumber(),
        World::Stalls => Mood::Stalls(sbdf(B)),
        World::Refuses => Mood::Refuses,
        World::VmDies => Mood::Dead,
        World::DiesAsking => Mood::Kills(sbdf(B)),
    };
    *guest.mood.lock().unwrap() = mood;
}

fn guest() -> Guest {
    Guest::new("web", &[sbdf(A), sbdf(B)])
}

fn is_open(bench: &Bench) -> bool {
    bench.state().path().join("running.jsonl").exists()
}

fn explore(name: &str, setting: Setting, faults: Choice) {
    let (states, ways) = Explorer::new(setting, faults).explore();
    eprintln!("{name}: {states} states on {ways} ways");
    assert!(states > 500, "{states}");
}

#[test]
fn every_pair_of_faults_in_a_join() {
    explore("faults in a join", join, Choice::Pairs);
}

#[test]
fn every_fault_in_a_split_and_an_end_of_its_recovery() {
    explore("faults in a split", split, Choice::EndsTwice);
}

#[test]
fn every_fault_under_an_old_kernel_and_an_end_of_its_recovery() {
    explore("faults under 6.12", join_6_12, Choice::EndsTwice);
}

#[test]
fn whatever_others_do_and_an_end_of_the_process() {
    explore("others and a join", join, Choice::Others);
}
