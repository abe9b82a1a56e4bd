//! The seam to virtual machines.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use iommu_group::{MemoryHole, RouteChange, Sbdf};
use serde::{Deserialize, Serialize};

use super::remote::{is_gone, reason};
use vmm_api::ClientError;

/// A device that a virtual machine has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Assigned {
    /// Name of the virtual machine.
    pub vm: String,
    /// Name of the device in it.
    pub id: String,
    /// The function on the host.
    pub function: Sbdf,
    /// Whether it may take part in peer-to-peer DMA.
    #[serde(default)]
    pub p2p: bool,
    /// The P2P domain that it is in; the one without a name if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Functions of which it was accepted that they are reachable without the IOMMU because of this device.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub expose: BTreeSet<Sbdf>,
    /// Where it is in the guest's topology, in the VMM's own words; chosen by the VMM if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
}

/// What a virtual machine would have after a change.
#[derive(Debug, Clone, Copy)]
pub struct Prospect<'a> {
    /// All its devices.
    pub devices: &'a [Assigned],
    /// The ways of requests that change, and others that were asked about.
    pub routes: &'a [RouteChange],
    /// By device that comes back, the bus addresses at which memory of the guest must not be then.
    pub holes: &'a BTreeMap<Sbdf, Vec<MemoryHole>>,
}

impl Prospect<'_> {
    /// Whether none of the guest's memory is in a hole that matters to the VMM.
    pub(super) fn reach_memory(
        &self,
        vm: &str,
        memory: &[RangeInclusive<u64>],
        matters: impl Fn(&MemoryHole) -> bool,
    ) -> Result<(), VmmError> {
        let hit = self.holes.iter().find_map(|(function, holes)| {
            memory.iter().find_map(|memory| {
                let holes = holes.iter().filter(|hole| matters(hole));
                Some((*function, memory, MemoryHole::worst(holes, memory)?))
            })
        });
        match hit {
            None => Ok(()),
            Some((function, memory, hole)) => Err(VmmError::Memory {
                vm: vm.to_owned(),
                function,
                memory: memory.clone(),
                hole: hole.clone(),
            }),
        }
    }
}

/// What is so of the windows through which peers reach a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// There are none, or none any more.
    Closed,
    /// They stay until the device is unplugged: the VMM cannot close them before.
    OpenWhilePlugged,
}

/// How a virtual machine is reached by another process, later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmAddress {
    /// The socket of its API.
    pub socket: PathBuf,
    /// What listens there.
    pub kind: VmmKind,
}

/// Which API a virtual machine monitor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmmKind {
    /// That of this project's.
    P2pVmm,
    /// That of cloud-hypervisor's releases.
    CloudHypervisor,
}

/// A virtual machine monitor with one virtual machine. Calls for different devices come from several threads at once.
pub trait Vmm: Sync {
    /// Name of the virtual machine.
    fn name(&self) -> &str;

    /// How another process reaches it; `None` if none can.
    fn address(&self) -> Option<VmAddress>;

    /// The devices that it has.
    fn devices(&self) -> Result<Vec<Assigned>, VmmError>;

    /// The same, from one that may be stopped: an error if it has not answered after `patience`.
    fn devices_within(&self, _patience: Duration) -> Result<Vec<Assigned>, VmmError> {
        self.devices()
    }

    /// Whether it could have these devices and no others. Only looks, before anything is changed; what it takes a device
    /// for in the end is decided when that is plugged.
    fn could_have(&self, prospect: &Prospect<'_>) -> Result<(), VmmError>;

    /// Takes away the windows through which peers reach the device, if it can. One that has none is no error.
    fn revoke(&self, device: &Assigned) -> Result<Windows, VmmError>;

    /// Gives the windows back that [`revoke`](Self::revoke) took away. A device that has none is no error.
    fn reopen(&self, device: &Assigned) -> Result<(), VmmError>;

    /// Asks the guest to let go of the device, waits until it has and VFIO is closed. If it has not by the deadline,
    /// the request is withdrawn, where the VMM can do that. A device that is not plugged is no error.
    fn unplug(&self, device: &Assigned, deadline: Duration) -> Result<(), VmmError>;

    /// These are about to be plugged, one after the other: until then they are the VM's own all the same.
    fn expect(&self, _devices: &[Assigned]) {}

    /// Gives the device back, into the domain and slot that it had. One that is plugged is no error.
    fn plug(&self, device: &Assigned) -> Result<(), VmmError>;
}

impl VmmError {
    /// What it means that a call failed.
    pub fn of(vm: &str, error: &ClientError) -> Self {
        let vm = vm.to_owned();
        if is_gone(error) {
            return Self::Gone { vm };
        }
        let reason = reason(error);
        Self::Refused { vm, reason }
    }
}

/// A virtual machine that did not do what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmmError {
    /// It is not there any more; it has no devices then.
    #[error("VM {vm} is gone")]
    Gone {
        /// The virtual machine.
        vm: String,
    },
    /// Nobody here knows how to reach it.
    #[error("nobody here knows how to reach VM {vm}")]
    Unknown {
        /// The virtual machine.
        vm: String,
    },
    /// The guest did not let go in time.
    #[error("the guest of {vm} did not let go of {id} within {} s", deadline.as_secs())]
    Stalled {
        /// The virtual machine.
        vm: String,
        /// The device.
        id: String,
        /// How long it had.
        deadline: Duration,
    },
    /// A device would not reach memory of the guest, which stays where it is while the guest runs.
    #[error(
        "{function} would not reach memory of VM {vm} ({:#x}-{:#x}) at {hole}",
        memory.start(), memory.end()
    )]
    Memory {
        /// The virtual machine.
        vm: String,
        /// The device.
        function: Sbdf,
        /// The memory.
        memory: RangeInclusive<u64>,
        /// Where it would be out of reach, and why.
        hole: MemoryHole,
    },
    /// It refused.
    #[error("VM {vm} refused: {reason}")]
    Refused {
        /// The virtual machine.
        vm: String,
        /// Its words.
        reason: String,
    },
}
