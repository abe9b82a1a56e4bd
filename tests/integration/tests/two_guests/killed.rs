//! The daemon is killed at a random moment of a change for one guest or both, and the change is recovered by the next daemon
//! or by `p2pctl recover`.
//!
//! The seed is printed: `LAB_SEED=n` makes the same choices again. Moments depend on the speed of the machine.

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::BuildHasher;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lab::live::{Live, PATIENCE};
use lab::protocol::Exit;
use lab::report::Outcome;
use lab::{Daemon, Lab};

use crate::{ENGINES, apart, lab, name, probe, vm};

/// How often the daemon is killed.
fn kills() -> usize {
    if lab::long() { 200 } else { 6 }
}

/// How long guests have to let go of a device, in seconds.
const GUEST_S: u32 = 120;

/// A guest and its two engines.
struct Guest<'lab> {
    live: Live<'lab>,
    engines: [&'static str; 2],
}

impl Guest<'_> {
    fn are_joined(&self, lab: &Lab) -> bool {
        let [one, two] = self.engines.map(|bdf| lab.group(bdf).unwrap());
        one == two
    }

    /// Expects both engines in the guest, peers if they share a group, and that each of them does DMA: into memory, and
    /// into the other one if they are peers.
    fn has_all(&mut self, lab: &Lab, what: &str) {
        let joined = self.are_joined(lab);
        let expected = self.engines.map(|bdf| (name(bdf).to_owned(), joined));
        assert_eq!(self.live.peers(), expected, "{what}");
        let between = if joined {
            Outcome::Ok
        } else {
            Outcome::Nothing
        };
        let arrived = probe(&mut self.live);
        assert_eq!(arrived, (vec![Outcome::Ok; 2], vec![between; 4]), "{what}");
    }
}

/// What the daemon is asked to do.
#[derive(Debug)]
enum Change {
    Join {
        pair: [&'static str; 2],
        route: &'static str,
        /// Peers of the other guest: below one switch there is one group of peers at a time.
        instead_of: Option<[&'static str; 2]>,
    },
    Isolate([&'static str; 2]),
    /// Of an engine that no guest has.
    Reset(&'static str),
}

/// What became of a change when the daemon was killed.
enum End {
    /// It was done before, in this time.
    Done(Duration),
    Cut,
    /// It was never asked for.
    Early,
}

impl Change {
    /// One that changes something, as the guests are.
    fn choose(rng: &mut Rng, lab: &Lab, guests: &[Guest<'_>; 2]) -> Self {
        let joined = guests.iter().find(|guest| guest.are_joined(lab));
        let route = ["direct", "iommu"][rng.usize(..2)];
        match (rng.u8(..5), joined) {
            (0, _) => Self::Reset(ENGINES[4]),
            (1 | 2, Some(guest)) => Self::Isolate(guest.engines),
            (_, Some(guest)) => {
                let other = guests.iter().find(|one| one.engines != guest.engines);
                Self::Join {
                    pair: other.unwrap().engines,
                    route,
                    instead_of: Some(guest.engines),
                }
            }
            (_, None) => Self::Join {
                pair: guests[rng.usize(..2)].engines,
                route,
                instead_of: None,
            },
        }
    }

    fn words(&self) -> Vec<String> {
        let given = GUEST_S.to_string();
        let apply = ["p2pctl", "apply", "--guest-timeout", &given];
        let words = match self {
            Self::Join {
                pair,
                route,
                instead_of,
            } => {
                let mut words = [&apply[..], &["--join"], pair, &["--route", route]].concat();
                words.extend(instead_of.iter().flat_map(|peers| apart(peers)));
                words
            }
            Self::Isolate(peers) => [&apply[..], &apart(peers)].concat(),
            Self::Reset(function) => vec!["p2pctl", "reset", function, "--kind", "bus"],
        };
        words.into_iter().map(str::to_owned).collect()
    }

    /// Asks a daemon for it, which is killed after a while unless it is done before.
    fn cut_off(&self, lab: &Lab, daemon: Daemon<'_>, after: Duration) -> End {
        let started = Instant::now();
        let command = lab.command(self.words()).deadline(PATIENCE);
        let mut asked = command.spawn().unwrap();
        let mut done = false;
        while !done && started.elapsed() < after {
            thread::sleep(Duration::from_millis(5).min(after.saturating_sub(started.elapsed())));
            done = asked.has_ended().unwrap();
        }
        let took = started.elapsed();
        daemon.kill();
        let output = asked.wait().unwrap();
        match output.code() {
            Some(0) => End::Done(took),
            Some(1) => End::Cut,
            // The daemon was gone before the command connected to it, so the command looked at the host itself.
            Some(2) if output.stdout.contains("no daemon listens") => End::Early,
            _ => panic!("{self:?}: {output:?}"),
        }
    }
}

#[test]
fn killed_at_random_moments_of_changes_it_leaves_every_device_in_its_guest_and_doing_dma() {
    let seed: u64 = match env::var("LAB_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(()) >> 32,
    };
    eprintln!("seed {seed}: LAB_SEED={seed} makes the same choices");
    let mut rng = Rng::with_seed(seed);
    let lab = lab();
    let [a, b, c, d, spare, ..] = ENGINES;
    let mut guests = [
        Guest {
            live: Live::boot_vm(&lab, &vm(&[a, b], None)),
            engines: [a, b],
        },
        Guest {
            live: Live::boot_named(&lab, "db", &vm(&[c, d], None)),
            engines: [c, d],
        },
    ];
    // How long a reset and another change take here, at first a guess.
    let (mut reset, mut regroup) = (Duration::from_millis(300), Duration::from_secs(5));
    let (mut cut, mut late, mut early) = (0, 0, 0);
    while cut < kills() {
        let change = Change::choose(&mut rng, &lab, &guests);
        let span = match change {
            Change::Reset(_) => &mut reset,
            Change::Join { .. } | Change::Isolate(_) => &mut regroup,
        };
        let after = span.mul_f64(rng.f64());
        let daemon = Daemon::start(&lab, &["web", "db"]);
        match change.cut_off(&lab, daemon, after) {
            End::Done(took) => {
                late += 1;
                *span = took;
            }
            End::Cut => cut += 1,
            End::Early => early += 1,
        }
        let by_command = rng.bool();
        let what = format!("kill {cut}, {} ms into {change:?}", after.as_millis());
        let before = Instant::now();
        if by_command {
            let recover = ["p2pctl", "recover", "--json"];
            let output = lab.command(recover).deadline(PATIENCE).run().unwrap();
            assert_eq!(output.code(), Some(0), "{what}: {output:?}");
        }
        let daemon = Daemon::start(&lab, &["web", "db"]);
        daemon.settle();
        let recovered = before.elapsed().as_millis();
        daemon.stop();
        for guest in &mut guests {
            guest.has_all(&lab, &what);
        }
        assert_eq!(
            lab.driver(spare).unwrap().as_deref(),
            Some("vfio-pci"),
            "{what}"
        );
        let by = if by_command { "command" } else { "daemon" };
        eprintln!("{what}: recovered by the {by} in {recovered} ms");
    }
    eprintln!("{cut} changes were cut off, {late} were done before, {early} not begun");
    for guest in guests {
        assert_eq!(guest.live.power_off().exit, Exit::Code(0));
    }
    let log = lab.dmesg().unwrap();
    assert!(
        !log.contains("cut here") && !log.contains("Call Trace"),
        "{log}"
    );
}
