//! What others do to the host: ports whose ACS is changed and devices that change groups behind the daemon's back.
//!
//! ```text
//! uevents of PCI functions ─▶ look at the whole host ─┬▶ differences ─▶ revoke the peer windows that depend on them
//! ACS words, twice a second ─▶ if one is different ───┘              ─▶ put the words back that a transaction holds
//!                                                                    ─▶ unplug the devices, plug them as what they may be now
//! ```
//! A transaction changes the same things; what is seen meanwhile means nothing, and afterwards there is a new normal.

mod facts;
mod rhythm;
mod words;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hotplug::regroup::{Assigned, Host as _, Regroup, RegroupError, Windows};
use iommu_group::{Function, Sbdf, Topology};

use super::changes::Changes;
use super::guests::Guest;
use super::uevents::Uevents;
use crate::cli::Global;
use crate::source::Source;
use facts::Facts;
use rhythm::{Look, Moment, Rhythm};
use words::Words;

/// How long a guest may take to let go of a device whose peers have changed.
const GUEST: Duration = Duration::from_secs(60);

/// The thread that looks. It ends when this is dropped.
pub(crate) struct Drift {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drift {
    pub(crate) fn start(changes: Changes, global: Global) -> io::Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let thread = thread::Builder::new()
            .name("drift".to_owned())
            .spawn(move || {
                let mut watcher = Watcher::new(changes, global);
                while !ended.load(Ordering::Acquire) {
                    watcher.turn();
                }
            })?;
        Ok(Self {
            done,
            thread: Some(thread),
        })
    }
}

impl Drop for Drift {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("p2pctl: the thread that looks for drift had panicked");
        }
    }
}

struct Watcher {
    changes: Changes,
    global: Global,
    started: Instant,
    rhythm: Rhythm,
    /// None if the kernel does not tell what comes and goes.
    uevents: Option<Uevents>,
    /// What the host was like, and after how many transactions.
    normal: Option<(u64, Facts)>,
    words: Words,
}

impl Watcher {
    fn new(changes: Changes, global: Global) -> Self {
        let mut watcher = Self {
            changes,
            global,
            started: Instant::now(),
            rhythm: Rhythm::new(true),
            uevents: None,
            normal: None,
            words: Words::default(),
        };
        // What the kernel tells is about no other host than its own.
        let elsewhere = watcher.global.sysfs.as_deref();
        match elsewhere.filter(|sysfs| *sysfs != Path::new("/sys")) {
            None => match Uevents::open() {
                Ok(uevents) => watcher.uevents = Some(uevents),
                Err(error) => watcher.deafen(&error.to_string()),
            },
            Some(sysfs) => watcher.deafen(&format!("{} is not /sys", sysfs.display())),
        }
        watcher
    }

    /// From now on the host is looked at, as the kernel does not tell what comes and goes.
    fn deafen(&mut self, why: &str) {
        self.uevents = None;
        self.rhythm.deafen();
        eprintln!(
            "p2pctl: the kernel does not tell what comes and goes ({why}): the whole host is looked at twice a second instead"
        );
        self.tell("drift-polling", &[("why", why)]);
    }

    fn moment(&self) -> Moment {
        let (busy, changes) = self.changes.activity();
        Moment {
            now: self.started.elapsed(),
            busy,
            changes,
        }
    }

    /// Looks at what there is to look at, and waits until there is more.
    fn turn(&mut self) {
        let at = self.moment();
        let look = self.rhythm.look(at);
        self.rhythm.looked(look, at);
        let whole = match look {
            Look::Nothing => false,
            Look::Words => !self.words.hold(),
            Look::Whole => true,
        };
        if whole {
            self.rhythm.looked(Look::Whole, at);
            self.look(at.changes);
        }
        let rest = self.rhythm.rest(self.moment());
        let Some(uevents) = &self.uevents else {
            thread::sleep(rest);
            return;
        };
        match uevents.wait(rest) {
            Ok(true) => self.rhythm.news(self.started.elapsed()),
            Ok(false) => {}
            Err(error) => self.deafen(&error.to_string()),
        }
    }

    fn look(&mut self, count: u64) {
        // A function may go while it is looked at.
        let Ok(source) = Source::load(&self.global) else {
            self.rhythm.news(self.started.elapsed());
            return;
        };
        let now = Facts::of(&source.topology);
        let normal = match self.normal.take() {
            Some((then, normal)) if then == count => normal,
            _ => now.clone(),
        };
        let found = normal.changes(&now);
        self.normal = Some((count, now));
        let held = match self.held() {
            Ok(held) => held,
            Err(error) => {
                self.tell("drift-error", &[("error", &error.to_string())]);
                BTreeSet::new()
            }
        };
        let sysfs = self.changes.host().host.sysfs();
        self.words = Words::of(&source.topology, sysfs, &held);
        // One that has begun meanwhile has made the differences itself.
        if found.is_empty() || self.changes.activity() != (false, count) {
            return;
        }
        self.answer(&source.topology, &found, &normal, &held);
    }

    /// The ports whose words a transaction holds.
    fn held(&self) -> Result<BTreeSet<Sbdf>, RegroupError> {
        let host = self.changes.host();
        Regroup::new(&host.host, &[], host.state.clone()).held()
    }

    /// Does about differences what has to be done.
    fn answer(
        &mut self,
        topology: &Topology,
        found: &[(Sbdf, String)],
        normal: &Facts,
        held: &BTreeSet<Sbdf>,
    ) {
        for (function, what) in found {
            self.tell(
                "drift",
                &[("function", &function.to_string()), ("what", what)],
            );
        }
        let guests = self.changes.host().guests.now();
        let concerned = concerned(topology, &guests, found);
        for (guest, device) in &concerned {
            let why = found.iter().map(|(_, what)| what.as_str());
            let why = why.collect::<Vec<_>>().join("; ");
            let told = [("vm", &*device.vm), ("id", &*device.id), ("why", &*why)];
            match guest.revoke(device) {
                Ok(Windows::Closed) => self.tell("windows-revoked", &told),
                // Until it is unplugged, which is next.
                Ok(Windows::OpenWhilePlugged) => self.tell("windows-stay", &told),
                Err(error) => self.failed(device, &error.to_string()),
            }
        }
        self.restore(found, normal, held);
        if !concerned.is_empty() {
            self.replug(&concerned);
        }
    }

    /// Puts words back that a transaction holds.
    fn restore(&mut self, found: &[(Sbdf, String)], normal: &Facts, held: &BTreeSet<Sbdf>) {
        let host = self.changes.host();
        let regroup = Regroup::new(&host.host, &[], host.state.clone());
        for (port, _) in found {
            let Some(word) = normal.words.get(port).filter(|_| held.contains(port)) else {
                continue;
            };
            match regroup.write_acs(*port, *word) {
                Ok(()) => {
                    if let Some((_, facts)) = &mut self.normal {
                        facts.words.insert(*port, *word);
                    }
                    // What was looked at is not what is there now.
                    self.rhythm.news(self.started.elapsed());
                    let word = format!("{:04x}", word.bits());
                    self.tell(
                        "acs-restored",
                        &[("function", &port.to_string()), ("to", &word)],
                    );
                }
                Err(error) => self.tell("drift-error", &[("error", &error.to_string())]),
            }
        }
    }

    /// Unplugs devices and plugs them as the peers that they were, or without any if that is refused now.
    fn replug(&self, concerned: &[(Guest, Assigned)]) {
        thread::scope(|scope| {
            for (guest, device) in concerned {
                scope.spawn(move || {
                    if let Err(error) = guest.unplug(device, GUEST) {
                        self.failed(device, &error.to_string());
                    }
                });
            }
        });
        for (guest, device) in concerned {
            let alone = Assigned {
                p2p: false,
                domain: None,
                ..device.clone()
            };
            let plugged = match guest.plug(device) {
                Ok(()) => Ok("as before"),
                Err(error) => {
                    self.failed(device, &error.to_string());
                    guest.plug(&alone).map(|()| "without peers")
                }
            };
            match plugged {
                Ok(how) => self.tell(
                    "device-replugged",
                    &[("vm", &device.vm), ("id", &device.id), ("how", how)],
                ),
                Err(error) => self.failed(device, &error.to_string()),
            }
        }
    }

    fn failed(&self, device: &Assigned, error: &str) {
        self.tell(
            "drift-error",
            &[("vm", &device.vm), ("id", &device.id), ("error", error)],
        );
    }

    fn tell(&self, event: &str, properties: &[(&str, &str)]) {
        let properties = properties.iter();
        let properties = properties.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.changes
            .events()
            .note("host", event, properties.collect());
    }
}

/// The peers whose ways lead past what is different, with all of their domains.
fn concerned(
    topology: &Topology,
    guests: &[Guest],
    found: &[(Sbdf, String)],
) -> Vec<(Guest, Assigned)> {
    let touched = |device: &Assigned| {
        let above = topology.ancestors(device.function).map(Function::sbdf);
        let mut way = std::iter::once(device.function).chain(above);
        way.any(|at| found.iter().any(|(function, _)| *function == at))
    };
    let mut concerned = Vec::new();
    for guest in guests {
        let devices = guest.devices().unwrap_or_default();
        let peers: Vec<&Assigned> = devices.iter().filter(|device| device.p2p).collect();
        let domains: BTreeSet<&Option<String>> = peers
            .iter()
            .filter(|device| touched(device))
            .map(|device| &device.domain)
            .collect();
        let members = peers
            .iter()
            .filter(|device| domains.contains(&device.domain));
        concerned.extend(members.map(|device| (guest.clone(), (*device).clone())));
    }
    concerned
}
