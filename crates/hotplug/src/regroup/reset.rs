//! Resets of a chosen kind, of functions that nobody uses, with all that they hit.
//!
//! ```text
//! choose ─ who is hit? ─ note what is to be as before ─ reset_method ─ reset ─┬─ reset_method, ACS of the ports that were hit
//!                                                             a crash ────────┘  the same, by whoever recovers
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use iommu_group::{
    AcsBits, Function, Kernel, Reset, ResetKind, ResetMask, Sbdf, Topology, distinct,
};
use serde::{Deserialize, Serialize};

use super::blocker::{Blocker, Refusal};
use super::difference::Difference;
use super::error::{RegroupError, StateError};
use super::holdings::Holdings;
use super::host::HostError;
use super::identity::Identity;
use super::machine::{Machine, RESETS};
use super::place::Place;
use super::preflight::{is_open, users};
use super::sealed::{seal, unseal};
use super::transaction::Regroup;
use super::vmm::Assigned;

/// A reset that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResetOrder {
    /// The function.
    pub function: Sbdf,
    /// The kinds that will do; the first that the function has, in the order in which Linux tries them.
    pub kinds: ResetMask,
    /// The functions that are the caller's, besides that one. A reset that hits others is refused.
    #[serde(default, deserialize_with = "distinct")]
    pub owned: BTreeSet<Sbdf>,
}

/// A reset that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResetDone {
    /// Its kind.
    pub kind: ResetKind,
    /// Every function that was reset.
    pub hits: Vec<Sbdf>,
    /// The ports among them, with the ACS that they have again.
    pub ports: BTreeMap<Sbdf, AcsBits>,
}

/// What is to be as it was when a reset is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Before {
    /// What the kernel calls the start of the machine.
    boot: String,
    function: Sbdf,
    /// Its `reset_method`, if another one is set for the reset.
    methods: Option<Methods>,
    ports: BTreeMap<Sbdf, Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Methods {
    place: Place,
    identity: Identity,
    methods: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    place: Place,
    identity: Identity,
    /// Where its ACS control register is in configuration space.
    at: u16,
    control: AcsBits,
}

/// What has to be written for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `reset` of the function, with this `reset_method`.
    Function(&'static str),
    /// `reset_subordinate` of the port.
    Link(Sbdf),
}

impl Regroup<'_> {
    /// Resets a function, if all that this hits is the caller's and nobody uses any of it.
    ///
    /// # Errors
    /// [`RegroupError::Refused`] with every reason; nothing was changed then.
    pub fn reset(&self, order: &ResetOrder) -> Result<ResetDone, RegroupError> {
        let lock = self.state.lock()?;
        let machine = self.machine();
        let topology = machine.scan()?;
        let mut blockers = self.unfinished();
        let chosen = choose(machine, &topology, order);
        let (reset, way) = match chosen {
            Ok(chosen) => chosen,
            Err(blocker) => {
                blockers.push(blocker);
                return Err(Refusal { blockers }.into());
            }
        };
        let mut owned = order.owned.clone();
        owned.insert(order.function);
        blockers.extend(reset.not_owned(&owned).map(|function| Blocker::NotOwned {
            function,
            kind: reset.kind.to_string(),
            of: order.function,
        }));
        blockers.extend(self.in_use(&topology, &reset)?);
        if !blockers.is_empty() {
            return Err(Refusal { blockers }.into());
        }
        let before = Before {
            boot: machine.boot_id()?,
            function: order.function,
            methods: match way {
                Way::Function(word) => other_methods(machine, &topology, order.function, word)?,
                Way::Link(_) => None,
            },
            ports: ports(&topology, &reset.hit_ports),
        };
        let note = seal(&before).unwrap_or_default();
        self.state.replace(&self.state.resetting(), &note)?;
        let done = act(machine, &before, way);
        // Whatever became of it. What fails now is tried again by whoever recovers.
        if let Some(error) = self.after_reset(&before)?.into_iter().next() {
            return Err(error.1.into());
        }
        self.state.discard(&self.state.resetting())?;
        done?;
        drop(lock);
        Ok(ResetDone {
            kind: reset.kind,
            hits: reset.hits,
            ports: before
                .ports
                .into_iter()
                .map(|(port, was)| (port, was.control))
                .collect(),
        })
    }

    /// Who uses what a reset hits.
    fn in_use(&self, topology: &Topology, reset: &Reset) -> Result<Vec<Blocker>, HostError> {
        let functions = reset.hits.iter().filter_map(|hit| topology.get(*hit));
        let functions: Vec<&Function> = functions.collect();
        let Holdings { assigned, silent } = Holdings::ask(self.vmms, |assigned| {
            is_open(self.machine(), topology, &functions, assigned)
        })?;
        let mut blockers = silent;
        let hit = |device: &&Assigned| reset.hits.contains(&device.function);
        blockers.extend(assigned.iter().filter(hit).map(|device| Blocker::Plugged {
            function: device.function,
            vm: device.vm.clone(),
            id: device.id.clone(),
        }));
        blockers.extend(users(self.machine(), topology, &functions, &assigned)?);
        Ok(blockers)
    }

    /// Brings to its end what a reset that was interrupted has left, and says what cannot be put right.
    pub(super) fn recover_reset(&self) -> Result<Vec<Difference>, RegroupError> {
        let path = self.state.resetting();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::io("read", &path)(error).into()),
        };
        let before: Before = match unseal(text.trim_ascii_end()) {
            Ok(before) => before,
            Err(reason) => {
                let (path, line) = (path.clone(), 1);
                let error = StateError::Journal { path, line, reason };
                return Err(self.state.set_aside(&self.state.resetting(), error).into());
            }
        };
        let failed = self.after_reset(&before)?.into_iter();
        let remains = failed.map(|(function, error)| match error {
            HostError::Gone { function } => Difference::Gone { function },
            HostError::Replaced { function } => Difference::Replaced { function },
            error => Difference::Unreadable {
                function,
                error: error.to_string(),
            },
        });
        let remains = remains.collect();
        self.state.discard(&path)?;
        Ok(remains)
    }

    /// What was reset is as it was; where it is not, why. A reboot has seen to that by itself.
    fn after_reset(&self, before: &Before) -> Result<Vec<(Sbdf, HostError)>, HostError> {
        let machine = self.machine();
        let mut failed = Vec::new();
        if machine.boot_id()? != before.boot {
            return Ok(failed);
        }
        for (port, was) in &before.ports {
            let restored = machine
                .locate(*port, &was.place, was.identity)
                .and_then(|at| machine.set_acs_control(at, was.at, was.control));
            failed.extend(restored.err().map(|error| (*port, error)));
        }
        if let Some(was) = &before.methods {
            let function = before.function;
            let restored = machine
                .locate(function, &was.place, was.identity)
                .and_then(|at| machine.set_resets(at, &was.methods));
            failed.extend(restored.err().map(|error| (function, error)));
        }
        Ok(failed)
    }
}

/// The reset that is meant, and how to have it.
fn choose(
    machine: Machine<'_>,
    topology: &Topology,
    order: &ResetOrder,
) -> Result<(Reset, Way), Blocker> {
    let none = || Blocker::NoReset {
        function: order.function,
        kinds: order.kinds.to_string(),
    };
    let kernel = Kernel::of(topology);
    let reset = topology
        .choose_reset(&kernel, order.function, order.kinds)
        .ok_or_else(none)?;
    let way = match (reset.resets_function, reset.port) {
        (true, _) => Way::Function(method(reset.kind)),
        // An administrator has switched it off in `reset_method`.
        (false, None) => return Err(none()),
        (false, Some(port)) if machine.can_reset_below(port) => Way::Link(port),
        (false, Some(port)) => return Err(Blocker::NoLinkReset { port }),
    };
    Ok((reset, way))
}

/// What the kernel calls a kind (linux 7.2 drivers/pci/pci.c: `pci_reset_fn_methods[]`).
fn method(kind: ResetKind) -> &'static str {
    match kind {
        ResetKind::DeviceSpecific => "device_specific",
        ResetKind::Acpi => "acpi",
        ResetKind::Flr => "flr",
        ResetKind::AfFlr => "af_flr",
        ResetKind::Pm => "pm",
        ResetKind::Slot | ResetKind::Bus => "bus",
        ResetKind::CxlBus => "cxl_bus",
    }
}

/// The methods of a function, unless the kernel would use this one first anyway.
fn other_methods(
    machine: Machine<'_>,
    topology: &Topology,
    function: Sbdf,
    method: &str,
) -> Result<Option<Methods>, HostError> {
    let methods = machine.attribute(function, RESETS)?.unwrap_or_default();
    if methods.split_ascii_whitespace().next() == Some(method) {
        return Ok(None);
    }
    let found = topology.get(function);
    let (place, identity) = Place::of(topology, function)
        .zip(found.map(Identity::of))
        .ok_or(HostError::Unrecorded { function })?;
    Ok(Some(Methods {
        place,
        identity,
        methods,
    }))
}

fn ports(topology: &Topology, hit: &[Sbdf]) -> BTreeMap<Sbdf, Port> {
    let acs = |port: &Sbdf| {
        let function = topology.get(*port)?;
        let acs = function.acs().registers()?;
        let port_was = Port {
            place: Place::of(topology, *port)?,
            identity: Identity::of(function),
            at: acs.control_offset(),
            control: acs.control,
        };
        Some((*port, port_was))
    };
    hit.iter().filter_map(acs).collect()
}

fn act(machine: Machine<'_>, before: &Before, way: Way) -> Result<(), HostError> {
    match way {
        Way::Function(method) => {
            if before.methods.is_some() {
                machine.set_resets(before.function, method)?;
            }
            machine.reset(before.function)
        }
        Way::Link(port) => machine.reset_below(port),
    }
}
