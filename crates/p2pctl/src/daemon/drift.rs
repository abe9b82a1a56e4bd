//! What others do to the host: ports whose ACS is changed and devices that change groups behind the daemon's back.
//!
//! ```text
//! look (a word of each port, a few times a second) ─▶ differences ─▶ revoke the peer windows that depend on them
//!                                                                 ─▶ put the words back that a transaction holds
//!                                                                 ─▶ unplug the devices, plug them as what they may be now
//! ```
//! A transaction changes the same things; what is seen meanwhile means nothing, and afterwards there is a new normal.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hotplug::regroup::{Assigned, Regroup, RemoteVmm, Vmm};
use iommu_group::{AcsBits, Function, GroupId, Sbdf, Topology};

use super::changes::Changes;
use crate::cli::Global;
use crate::source::Source;

/// How often is looked.
const LOOK: Duration = Duration::from_millis(250);

/// How long a guest may take to let go of a device whose peers have changed.
const GUEST: Duration = Duration::from_secs(60);

/// The thread that looks. It ends when this is dropped.
pub(crate) struct Drift {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the peers of virtual machines depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Facts {
    /// The ACS of every port that has any.
    words: BTreeMap<Sbdf, AcsBits>,
    /// The group of every endpoint.
    groups: BTreeMap<Sbdf, Option<GroupId>>,
}

impl Facts {
    fn of(topology: &Topology) -> Self {
        let all = topology.functions().iter();
        let word = |function: &Function| {
            let port = function.port_type().is_downstream();
            let acs = function.acs().registers().filter(|_| port)?;
            Some((function.sbdf(), acs.control))
        };
        Self {
            words: all.clone().filter_map(word).collect(),
            groups: all
                .filter(|function| !function.is_bridge())
                .map(|function| (function.sbdf(), function.group()))
                .collect(),
        }
    }

    /// What is different now, in words, and where.
    fn changes(&self, now: &Self) -> Vec<(Sbdf, String)> {
        let mut changes = Vec::new();
        for (port, was) in &self.words {
            match now.words.get(port) {
                Some(is) if is == was => {}
                Some(is) => changes.push((
                    *port,
                    format!(
                        "ACS of {port} is {:04x}, and was {:04x}",
                        is.bits(),
                        was.bits()
                    ),
                )),
                None => changes.push((*port, format!("{port} is gone"))),
            }
        }
        for (function, was) in &self.groups {
            match now.groups.get(function) {
                Some(is) if is == was => {}
                Some(_) => changes.push((*function, format!("{function} is in another group"))),
                None => changes.push((*function, format!("{function} is gone"))),
            }
        }
        changes
    }
}

impl Drift {
    pub(crate) fn start(changes: Changes, global: Global) -> io::Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let thread = thread::Builder::new()
            .name("drift".to_owned())
            .spawn(move || {
                let mut watcher = Watcher {
                    changes,
                    global,
                    normal: None,
                };
                while !ended.load(Ordering::Acquire) {
                    watcher.look();
                    thread::sleep(LOOK);
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
    /// What the host was like, and after how many transactions.
    normal: Option<(u64, Facts)>,
}

impl Watcher {
    fn look(&mut self) {
        let (busy, count) = self.changes.activity();
        if busy {
            return;
        }
        // A function may go while it is looked at: the next look will tell.
        let Ok(source) = Source::load(&self.global) else {
            return;
        };
        let now = Facts::of(&source.topology);
        let normal = match self.normal.take() {
            Some((then, normal)) if then == count => normal,
            _ => now.clone(),
        };
        let found = normal.changes(&now);
        self.normal = Some((count, now));
        // One that has begun meanwhile has made the differences itself.
        if found.is_empty() || self.changes.activity() != (false, count) {
            return;
        }
        self.answer(&source.topology, &found, &normal);
    }

    /// Does about differences what has to be done.
    fn answer(&mut self, topology: &Topology, found: &[(Sbdf, String)], normal: &Facts) {
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
            match guest.revoke(device) {
                Ok(()) => self.tell(
                    "windows-revoked",
                    &[("vm", &device.vm), ("id", &device.id), ("why", &why)],
                ),
                Err(error) => self.failed(device, &error.to_string()),
            }
        }
        self.restore(found, normal);
        if !concerned.is_empty() {
            self.replug(&concerned);
        }
    }

    /// Puts words back that a transaction holds.
    fn restore(&mut self, found: &[(Sbdf, String)], normal: &Facts) {
        let host = self.changes.host();
        let regroup = Regroup::new(&host.host, &[], host.state.clone());
        let held: BTreeSet<Sbdf> = match regroup.held() {
            Ok(held) => held,
            Err(error) => {
                self.tell("drift-error", &[("error", &error.to_string())]);
                return;
            }
        };
        for (port, _) in found {
            let Some(word) = normal.words.get(port).filter(|_| held.contains(port)) else {
                continue;
            };
            match regroup.write_acs(*port, *word) {
                Ok(()) => {
                    if let Some((_, facts)) = &mut self.normal {
                        facts.words.insert(*port, *word);
                    }
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
    fn replug(&self, concerned: &[(RemoteVmm, Assigned)]) {
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
    guests: &[RemoteVmm],
    found: &[(Sbdf, String)],
) -> Vec<(RemoteVmm, Assigned)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: &str = include_str!("../../../../resources/topologies/switch-four-nvme.json");

    #[test]
    fn a_host_is_like_itself() {
        let facts = Facts::of(&Topology::from_fixture(SWITCH).unwrap());
        assert!(!facts.words.is_empty() && !facts.groups.is_empty());
        assert_eq!(facts.changes(&facts), []);
    }

    #[test]
    fn another_word_a_lost_device_and_another_group_are_told() {
        let facts = Facts::of(&Topology::from_fixture(SWITCH).unwrap());
        let (port, word) = facts.words.iter().next().unwrap();
        let mut functions = facts.groups.keys();
        let (lost, moved) = (functions.next().unwrap(), functions.next().unwrap());
        let mut now = facts.clone();
        now.words.insert(*port, AcsBits::from_bits(0));
        now.groups.remove(lost);
        now.groups.insert(*moved, None);
        let told = facts.changes(&now);
        let expected = [
            (
                *port,
                format!("ACS of {port} is 0000, and was {:04x}", word.bits()),
            ),
            (*lost, format!("{lost} is gone")),
            (*moved, format!("{moved} is in another group")),
        ];
        assert_eq!(told, expected);
    }
}
