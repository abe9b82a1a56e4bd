//! Interface to virtual machines.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use iommu_group::{MemoryHole, RouteChange, Sbdf};
use serde::{Deserialize, Serialize};
use vmm_api::ClientError;

/// A device of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VmDevice {
    /// Name of the virtual machine.
    pub vm: String,
    /// Name of the device in the virtual machine.
    pub id: String,
    /// The function on the host.
    pub function: Sbdf,
    /// Whether it may take part in peer-to-peer DMA.
    #[serde(default)]
    pub p2p: bool,
    /// Its P2P domain; the unnamed domain if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Functions that may be reachable without the IOMMU because of this device.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub expose: BTreeSet<Sbdf>,
    /// Its place in the guest's topology, in the VMM's format; chosen by the VMM if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
}

/// The devices of a virtual machine after a change.
#[derive(Debug, Clone, Copy)]
pub struct ProposedDevices<'a> {
    /// All devices.
    pub devices: &'a [VmDevice],
    /// The routes that change, and others that the plan asked for.
    pub routes: &'a [RouteChange],
    /// Bus addresses where the guest must have no memory, by device that is plugged back.
    pub holes: &'a BTreeMap<Sbdf, Vec<MemoryHole>>,
}

impl ProposedDevices<'_> {
    /// Checks that no guest memory is in a hole that matters to the VMM.
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

/// State of the mappings through which peers reach a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerMappings {
    /// There are none, or they were closed.
    Closed,
    /// They stay open until the device is unplugged, because the VMM cannot close them before.
    OpenWhilePlugged,
}

/// How another process reaches a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmAddress {
    /// The socket of its API.
    pub socket: PathBuf,
    /// The kind of the VMM.
    pub kind: VmmKind,
}

/// Kind of a VMM, which determines its API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmmKind {
    /// A VMM of this project.
    P2pVmm,
    /// A cloud-hypervisor release.
    CloudHypervisor,
}

/// A VMM with one virtual machine. Calls for different devices come from several threads at once.
pub trait Vmm: Sync {
    /// Name of the virtual machine.
    fn name(&self) -> &str;

    /// The address for other processes; `None` if there is none.
    fn address(&self) -> Option<VmAddress>;

    /// The devices of the virtual machine.
    fn devices(&self) -> Result<Vec<VmDevice>, VmmError>;

    /// The same with a timeout, for a VMM that may be stopped.
    fn devices_within(&self, _patience: Duration) -> Result<Vec<VmDevice>, VmmError> {
        self.devices()
    }

    /// Checks whether the virtual machine could have exactly these devices, before anything is changed. The VMM makes
    /// the final decision when a device is plugged.
    fn could_have(&self, proposed: &ProposedDevices<'_>) -> Result<(), VmmError>;

    /// Closes the mappings through which peers reach the device, if the VMM can. A device without mappings is not an
    /// error.
    fn revoke(&self, device: &VmDevice) -> Result<PeerMappings, VmmError>;

    /// Opens the mappings again that [`revoke`](Self::revoke) closed. A device without mappings is not an error.
    fn reopen(&self, device: &VmDevice) -> Result<(), VmmError>;

    /// Asks the guest to release the device, and waits until VFIO is closed. At the deadline the request is withdrawn,
    /// if the VMM can do that. A device that is not plugged is not an error.
    fn unplug(&self, device: &VmDevice, deadline: Duration) -> Result<(), VmmError>;

    /// Announces that these devices will be plugged one after the other. Until then they count as the VM's own.
    fn expect(&self, _devices: &[VmDevice]) {}

    /// Plugs the device back, into its domain and slot. A device that is plugged already is not an error.
    fn plug(&self, device: &VmDevice) -> Result<(), VmmError>;
}

impl VmmError {
    /// The error for a failed call.
    pub fn of(vm: &str, error: &ClientError) -> Self {
        let vm = vm.to_owned();
        if is_gone(error) {
            return Self::Gone { vm };
        }
        let reason = reason(error);
        Self::Refused { vm, reason }
    }
}

/// Error of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmmError {
    /// The VMM has ended. It has no devices then.
    #[error("VM {vm} is gone")]
    Gone {
        /// The virtual machine.
        vm: String,
    },
    /// The address of the VMM is unknown.
    #[error("the API socket of VM {vm} is unknown")]
    Unknown {
        /// The virtual machine.
        vm: String,
    },
    /// The guest did not release the device in time.
    #[error("the guest of {vm} did not release {id} within {} s", deadline.as_secs())]
    Stalled {
        /// The virtual machine.
        vm: String,
        /// The device.
        id: String,
        /// The time that it had.
        deadline: Duration,
    },
    /// A device would not reach a part of the guest's memory, which cannot move while the guest runs.
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
        /// The unreachable range and its cause.
        hole: MemoryHole,
    },
    /// The VMM refused the call.
    #[error("VM {vm} refused: {reason}")]
    Refused {
        /// The virtual machine.
        vm: String,
        /// The VMM's message.
        reason: String,
    },
}

/// Whether the VMM has ended, in contrast to a VMM that does not answer.
pub(super) fn is_gone(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { source, .. } => matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        ),
        ClientError::Broken { source, .. } => matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        ),
        ClientError::Descriptor { .. }
        | ClientError::Late { .. }
        | ClientError::Malformed { .. }
        | ClientError::Refused { .. }
        | ClientError::Failed { .. } => false,
    }
}

/// An error and its causes on one line.
fn reason(error: &ClientError) -> String {
    let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let chain = std::iter::successors(first, |error| error.source());
    let words: Vec<String> = chain.map(ToString::to_string).collect();
    in_one_line(&words.join(": "))
}

/// Joins the lines of a message, which are indented for a terminal.
pub(super) fn in_one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join("; ")
}
