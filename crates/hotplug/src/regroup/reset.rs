//! Resets of a chosen kind, of functions that are not in use, with all functions that the reset hits.
//!
//! ```text
//! choose ─ check hits ─ record ─ set reset_method ─ reset ─┬─ restore reset_method and the ACS of the ports
//!                                                  crash ──┘  recovery does the same
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
use super::preflight::{is_open, users};
use super::sealed::{seal, unseal};
use super::sysfs_ops::{RESETS, SysfsOps};
use super::topology_path::TopologyPath;
use super::transaction::Regroup;
use super::vmm::VmDevice;

/// A requested reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResetOrder {
    /// The function.
    pub function: Sbdf,
    /// The acceptable kinds. The first one that the function has is used, in Linux's order.
    pub kinds: ResetMask,
    /// Other functions that the caller owns. A reset that hits further functions is refused.
    #[serde(default, deserialize_with = "distinct")]
    pub owned: BTreeSet<Sbdf>,
}

/// A completed reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResetDone {
    /// Kind of the reset.
    pub kind: ResetKind,
    /// Every function that was reset.
    pub hits: Vec<Sbdf>,
    /// The ports among them, with their restored ACS.
    pub ports: BTreeMap<Sbdf, AcsBits>,
}

/// State to restore after a reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Before {
    /// Boot ID of the current boot.
    boot: String,
    function: Sbdf,
    /// Value of `reset_method`, if it is changed for the reset.
    methods: Option<Methods>,
    ports: BTreeMap<Sbdf, Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Methods {
    #[serde(rename = "place")]
    topology_path: TopologyPath,
    identity: Identity,
    methods: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    #[serde(rename = "place")]
    topology_path: TopologyPath,
    identity: Identity,
    /// Offset of the ACS control register in configuration space.
    at: u16,
    control: AcsBits,
}

/// How the kernel is asked for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Write `reset` of the function, with this `reset_method`.
    Function(&'static str),
    /// Write `reset_subordinate` of the port.
    Link(Sbdf),
}

impl Regroup<'_> {
    /// Resets a function, if the caller owns all functions that this hits and none is in use.
    ///
    /// # Errors
    /// [`RegroupError::Refused`] with all reasons. Nothing was changed.
    pub fn reset(&self, order: &ResetOrder) -> Result<ResetDone, RegroupError> {
        let lock = self.state.lock()?;
        let ops = self.sysfs_ops();
        let topology = ops.scan()?;
        let mut blockers = self.unfinished();
        let chosen = choose(ops, &topology, order);
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
            boot: ops.boot_id()?,
            function: order.function,
            methods: match way {
                Way::Function(word) => other_methods(ops, &topology, order.function, word)?,
                Way::Link(_) => None,
            },
            ports: ports(&topology, &reset.hit_ports),
        };
        let note = seal(&before).unwrap_or_default();
        self.state.replace(&self.state.resetting(), &note)?;
        let done = act(ops, &before, way);
        // Restore the state whether the reset succeeded or not. Recovery repeats a restoration that fails.
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

    /// Users of the functions that a reset hits.
    fn in_use(&self, topology: &Topology, reset: &Reset) -> Result<Vec<Blocker>, HostError> {
        let functions = reset.hits.iter().filter_map(|hit| topology.get(*hit));
        let functions: Vec<&Function> = functions.collect();
        let Holdings { assigned, silent } = Holdings::query(self.vmms, |assigned| {
            is_open(self.sysfs_ops(), topology, &functions, assigned)
        })?;
        let mut blockers = silent;
        let hit = |device: &&VmDevice| reset.hits.contains(&device.function);
        blockers.extend(assigned.iter().filter(hit).map(|device| Blocker::Plugged {
            function: device.function,
            vm: device.vm.clone(),
            id: device.id.clone(),
        }));
        blockers.extend(users(self.sysfs_ops(), topology, &functions, &assigned)?);
        Ok(blockers)
    }

    /// Ends an interrupted reset and returns the differences that cannot be removed.
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

    /// Restores the functions after a reset and returns the errors. After a reboot there is nothing to restore.
    fn after_reset(&self, before: &Before) -> Result<Vec<(Sbdf, HostError)>, HostError> {
        let ops = self.sysfs_ops();
        let mut failed = Vec::new();
        if ops.boot_id()? != before.boot {
            return Ok(failed);
        }
        for (port, was) in &before.ports {
            let restored = ops
                .locate(*port, &was.topology_path, was.identity)
                .and_then(|at| ops.set_acs_control(at, was.at, was.control));
            failed.extend(restored.err().map(|error| (*port, error)));
        }
        if let Some(was) = &before.methods {
            let function = before.function;
            let restored = ops
                .locate(function, &was.topology_path, was.identity)
                .and_then(|at| ops.set_resets(at, &was.methods));
            failed.extend(restored.err().map(|error| (function, error)));
        }
        Ok(failed)
    }
}

/// Chooses the kind of the reset and how to request it.
fn choose(
    ops: SysfsOps<'_>,
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
        // The method was disabled in `reset_method`.
        (false, None) => return Err(none()),
        (false, Some(port)) if ops.can_reset_below(port) => Way::Link(port),
        (false, Some(port)) => return Err(Blocker::NoLinkReset { port }),
    };
    Ok((reset, way))
}

/// The kernel's name of a reset kind (linux 7.2 drivers/pci/pci.c: `pci_reset_fn_methods[]`).
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

/// The reset methods of a function, unless the kernel would use this one first anyway.
fn other_methods(
    ops: SysfsOps<'_>,
    topology: &Topology,
    function: Sbdf,
    method: &str,
) -> Result<Option<Methods>, HostError> {
    let methods = ops.attribute(function, RESETS)?.unwrap_or_default();
    if methods.split_ascii_whitespace().next() == Some(method) {
        return Ok(None);
    }
    let found = topology.get(function);
    let (topology_path, identity) = TopologyPath::of(topology, function)
        .zip(found.map(Identity::of))
        .ok_or(HostError::Unrecorded { function })?;
    Ok(Some(Methods {
        topology_path,
        identity,
        methods,
    }))
}

fn ports(topology: &Topology, hit: &[Sbdf]) -> BTreeMap<Sbdf, Port> {
    let acs = |port: &Sbdf| {
        let function = topology.get(*port)?;
        let acs = function.acs().registers()?;
        let port_was = Port {
            topology_path: TopologyPath::of(topology, *port)?,
            identity: Identity::of(function),
            at: acs.control_offset(),
            control: acs.control,
        };
        Some((*port, port_was))
    };
    hit.iter().filter_map(acs).collect()
}

fn act(ops: SysfsOps<'_>, before: &Before, way: Way) -> Result<(), HostError> {
    match way {
        Way::Function(method) => {
            if before.methods.is_some() {
                ops.set_resets(before.function, method)?;
            }
            ops.reset(before.function)
        }
        Way::Link(port) => ops.reset_below(port),
    }
}
