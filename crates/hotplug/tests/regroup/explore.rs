//! Every pair of faults in a transaction and its recovery.
//!
//! Runs that reach the same state with the same number of faults left continue equally, so only the first of them is
//! continued. A state consists of the host, the guest, the state directory, and the position of the process.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs;
use std::sync::{Arc, Mutex};

use hotplug::regroup::{Difference, Finished, Outcome, Regroup, RegroupError, Report, Vmm};
use iommu_group::{Plan, Sbdf};

use crate::fake_host::Snapshot;
use crate::faults::{Event, ExternalEvent, Faults, Kind, Step};
use crate::guests::{Behaviour, Guest};
use crate::{A, B, Bench, brief, killed, sbdf};

/// The port above `A`.
const PORT: &str = "0000:02:00.0";

type Setting = fn() -> (Bench, Plan);

type Run = Vec<(usize, Event)>;

const EXTERNAL_EVENTS: [ExternalEvent; 9] = [
    ExternalEvent::DeviceGone,
    ExternalEvent::PortGone,
    ExternalEvent::DeviceReplaced,
    ExternalEvent::PortReplaced,
    ExternalEvent::Renumbered,
    ExternalEvent::Stalls,
    ExternalEvent::Refuses,
    ExternalEvent::VmDies,
    ExternalEvent::DiesAsking,
];

/// The states seen so far, and the runs to do.
#[derive(Default)]
struct Frontier {
    seen: HashSet<u64>,
    /// States that an ended process left.
    left: HashSet<u64>,
    expected: VecDeque<Run>,
}

/// The faults to explore.
#[derive(Clone, Copy)]
enum Choice {
    /// Any step fails, or the process ends before it; twice.
    Pairs,
    /// The same, and then the recovering process ends before any step.
    EndsTwice,
    /// External events at any time, and then the process ends; or the reverse.
    Others,
}

struct Explorer {
    setting: Setting,
    faults: Choice,
    old: Snapshot,
    new: Snapshot,
    /// Number of earlier transactions.
    before: usize,
}

/// Joins the two devices of a VM.
fn join() -> (Bench, Plan) {
    let bench = Bench::small("switch-four-nvme.json", "7.2.12");
    let plan = bench.join(&[A, B]);
    (bench, plan)
}

/// One device leaves a group of three: the kernel does not form the old state by itself.
fn split() -> (Bench, Plan) {
    let bench = Bench::new();
    bench.apply(&bench.join(&[A, B, crate::C]), &[]).unwrap();
    let plan = bench.isolate(&[A]);
    (bench, plan)
}

/// A join under a kernel that binds drivers to everything that it finds, on ports without ACS.
fn join_6_12() -> (Bench, Plan) {
    let bench = Bench::small("lab/edu-four-ports.json", "6.12.95");
    let plan = bench.join(&[A, B]);
    (bench, plan)
}

impl Explorer {
    fn new(setting: Setting, faults: Choice) -> Self {
        let (bench, plan) = setting();
        let old = bench.host.snapshot();
        let before = finished(&bench).len();
        let report = bench.apply(&plan, &[&guest()]).unwrap();
        assert_eq!(report.outcome, Outcome::New);
        let new = bench.host.snapshot();
        Self {
            setting,
            faults,
            old,
            new,
            before,
        }
    }

    /// Does all runs. Returns the number of states and the number of runs that led to them.
    fn explore(&self) -> (usize, usize) {
        let frontier = Arc::new(Mutex::new(Frontier::default()));
        let mut way = Some(Run::new());
        let mut expected = 0;
        while let Some(now) = way {
            self.go(&now, &frontier);
            expected += 1;
            way = frontier.lock().unwrap().expected.pop_front();
        }
        let seen = frontier.lock().unwrap().seen.len();
        (seen, expected)
    }

    fn go(&self, way: &Run, frontier: &Arc<Mutex<Frontier>>) {
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
            assert!(process < 5, "{way:?} does not end");
            faults.begin_process(if process == 0 { "apply" } else { "recover" });
            let mut result = Ok(None);
            let died = killed(|| {
                let regroup = Regroup::new(&bench.host, &vmms, bench.state());
                let mut observe = |progress: &hotplug::regroup::Progress<'_>| {
                    faults.set_guest(guest.state());
                    if let Some(Event::ExternalEvent(event)) = faults.recorded(progress) {
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
            guest.clear_kill();
            if died {
                continue;
            }
            match result {
                Ok(report) => return self.check(way, &bench, &guest, &faults, report),
                // It could not begin or continue; it can be called again.
                Err(RegroupError::State(_) | RegroupError::Host(_)) if is_open(&bench) => {}
                Err(RegroupError::State(_) | RegroupError::Host(_)) => {
                    return self.check(way, &bench, &guest, &faults, None);
                }
                Err(RegroupError::Refused(refusal)) => panic!("{way:?}: {refusal}"),
            }
        }
    }

    /// Checks the final state.
    fn check(
        &self,
        way: &Run,
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
            assert!(told, "the reason why it is unfinished is missing: {what}");
            guest.cooperate();
            report = bench.recover(&[guest]);
            what = format!("{what}, then {}", brief(report.as_ref()));
        }
        assert!(!is_open(bench), "it does not finish: {what}");
        assert_eq!(*bench.host.strayed.borrow(), [""; 0], "{what}");
        let ended = report.map(|report| (report.outcome, report.remains));
        // A process that ended after the end record left the record.
        let ended = ended.or_else(|| last_end(bench, self.before));
        let now = bench.host.snapshot();
        let (wanted, remains) = match ended {
            Some((Outcome::New, remains)) => (&self.new, remains),
            Some((Outcome::Old, remains)) => (&self.old, remains),
            Some((Outcome::Rebooted, _)) => panic!("{what}"),
            None => (&self.old, Vec::new()),
        };
        let remains: Vec<String> = remains.iter().map(ToString::to_string).collect();
        let is_named = |at: &str| remains.iter().any(|line| line.contains(at));
        // Functions below a port that is gone are gone too.
        let gone = |at: &Sbdf| {
            let told = [
                format!("{at} is gone"),
                format!("{at} was replaced by another device"),
            ];
            remains.iter().any(|line| told.contains(line))
        };
        let lost: BTreeSet<Sbdf> = self.old.functions.keys().copied().filter(gone).collect();
        let devices_of = |snapshot: &Snapshot| snapshot.without(&lost).with_devices_only();
        for line in devices_of(&now).differences(&devices_of(wanted)) {
            let mut words = line.split(['[', ' ', ',', ']']);
            let first = words.find(|word| word.parse::<Sbdf>().is_ok());
            let told = !remains.is_empty() && first.is_none_or(is_named);
            assert!(told, "{line} is not reported: {what}");
        }
        let closed = guest.closed();
        assert!(
            guest.is_dead() || closed.iter().all(|at| is_named(&at.to_string())),
            "peers do not reach {closed:?}: {what}"
        );
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
    /// Whether a state is new. If it is, every fault at this step is added to the runs to do.
    fn look(&mut self, step: &Step, way: &Run, faults: Choice) -> bool {
        if !self.seen.insert(step.key) {
            return false;
        }
        if step.events == 2 {
            return true;
        }
        let first = step.events == 0;
        let mut events = match (faults, step.kind) {
            (Choice::Others, Kind::Record) => {
                // Once only, and in recovery only before the scan of the host.
                let is_due = first || step.looks_next && way.iter().all(|(_, e)| *e == Event::Die);
                let world = EXTERNAL_EVENTS.iter().filter(|_| is_due);
                world.copied().map(Event::ExternalEvent).collect()
            }
            (Choice::Others, _) | (_, Kind::Record) => Vec::new(),
            (Choice::EndsTwice, _) if !first => Vec::new(),
            // An undo action that fails once is retried, with the same result as no failure.
            (_, Kind::Host) if step.is_undoing => vec![Event::Stuck],
            (_, Kind::Host) => vec![Event::Fail, Event::Stuck],
            // No record follows one that cannot be written.
            (_, Kind::Disk) if step.is_append && first => vec![Event::Stuck, Event::FailsLate],
            (_, Kind::Disk) => vec![Event::Stuck],
        };
        if step.kind != Kind::Record && self.left.insert(step.left) {
            events.push(Event::Die);
        }
        for event in events {
            let mut next = way.clone();
            next.push((step.number, event));
            self.expected.push_back(next);
        }
        true
    }
}

fn finished(bench: &Bench) -> Vec<Finished> {
    bench.state().status("first").unwrap().finished
}

/// The outcome of the last transaction by its journal, unless it is an earlier one.
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

fn happen(event: ExternalEvent, bench: &Bench, guest: &Guest) {
    let host = &bench.host;
    let behaviour = match event {
        ExternalEvent::DeviceGone => return host.pull(sbdf(A)),
        ExternalEvent::PortGone => return host.pull(sbdf(PORT)),
        ExternalEvent::DeviceReplaced => return host.replace(sbdf(A)),
        ExternalEvent::PortReplaced => return host.replace(sbdf(PORT)),
        ExternalEvent::Renumbered => return host.renumber(),
        ExternalEvent::Stalls => Behaviour::Stalls(sbdf(B)),
        ExternalEvent::Refuses => Behaviour::Refuses,
        ExternalEvent::VmDies => Behaviour::Dead,
        ExternalEvent::DiesAsking => Behaviour::Kills(sbdf(B)),
    };
    *guest.behaviour.lock().unwrap() = behaviour;
}

fn guest() -> Guest {
    Guest::new("web", &[sbdf(A), sbdf(B)])
}

fn is_open(bench: &Bench) -> bool {
    bench.state().path().join("running.jsonl").exists()
}

fn explore(name: &str, setting: Setting, faults: Choice) {
    let (states, expected) = Explorer::new(setting, faults).explore();
    eprintln!("{name}: {states} states on {expected} expected");
    assert!(states > 500, "{states}");
}

#[test]
fn every_pair_of_faults_in_a_join() {
    explore("faults in a join", join, Choice::Pairs);
}

#[test]
fn every_fault_in_a_split_and_a_crash_of_its_recovery() {
    explore("faults in a split", split, Choice::EndsTwice);
}

#[test]
fn every_fault_under_an_old_kernel_and_a_crash_of_its_recovery() {
    explore("faults under 6.12", join_6_12, Choice::EndsTwice);
}

#[test]
fn every_external_event_and_a_crash() {
    explore("others and a join", join, Choice::Others);
}
