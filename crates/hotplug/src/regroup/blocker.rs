//! Reasons why a plan is not carried out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use iommu_group::{Exposure, MemoryHole, Sbdf, Warning};
use serde::{Deserialize, Serialize};

/// A condition that has to be removed before a plan can be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "blocker", rename_all = "kebab-case")]
pub enum Blocker {
    /// The plan does something that was not requested.
    Objection {
        /// The effect.
        objection: Warning,
    },
    /// The same goals result in a different plan now.
    Stale,
    /// The goals are no longer possible.
    Impossible {
        /// The cause.
        reason: String,
    },
    /// An earlier transaction is not finished.
    Unfinished {
        /// Its journal.
        journal: PathBuf,
    },
    /// A file system of the device is mounted.
    Mounted {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
        /// The mount point.
        at: String,
    },
    /// The device is used as swap space.
    Swap {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
    },
    /// The device is a member of another block device: LVM, MD, dm-crypt.
    Member {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
        /// The other block device.
        holder: String,
    },
    /// A network interface of the device is up.
    InterfaceUp {
        /// The function.
        function: Sbdf,
        /// The interface.
        interface: String,
    },
    /// A process has the device, or another one of its group, open.
    InUse {
        /// The function.
        function: Sbdf,
        /// The process.
        user: String,
    },
    /// A driver other than VFIO uses the function.
    Driver {
        /// The function.
        function: Sbdf,
        /// The driver.
        driver: String,
    },
    /// Devices of several virtual machines would be in one group, which only one VMM at a time can open.
    Shared {
        /// The devices and their virtual machines.
        devices: BTreeMap<Sbdf, String>,
    },
    /// A virtual machine's devices would come back with an exposure: they and another function would reach each other
    /// without the IOMMU.
    Exposed {
        /// The virtual machine.
        vm: String,
        /// The exposure.
        exposure: Exposure,
    },
    /// A function that would be reset is plugged in a virtual machine.
    Plugged {
        /// The function.
        function: Sbdf,
        /// The virtual machine.
        vm: String,
        /// Name of the device in the virtual machine.
        id: String,
    },
    /// The reset would hit a function that the caller does not own.
    NotOwned {
        /// The function.
        function: Sbdf,
        /// The kind of the reset.
        kind: String,
        /// The function to reset.
        of: Sbdf,
    },
    /// The function has no reset of the requested kinds.
    NoReset {
        /// The function.
        function: Sbdf,
        /// The requested kinds.
        kinds: String,
    },
    /// The kernel cannot reset a link with several functions on request.
    NoLinkReset {
        /// The port above the link.
        port: Sbdf,
    },
    /// A virtual machine did not list its devices.
    Vmm {
        /// The error.
        error: String,
    },
    /// A virtual machine cannot take its devices back as planned.
    Unwilling {
        /// The reason and the remedy.
        error: String,
    },
    /// A device would not reach a part of the guest's memory, which cannot move while the guest runs.
    Memory {
        /// The virtual machine.
        vm: String,
        /// The device.
        function: Sbdf,
        /// First and last address of the memory.
        memory: RangeInclusive<u64>,
        /// The unreachable range and its cause.
        hole: MemoryHole,
    },
    /// Kernel lockdown denies writes to configuration space.
    Lockdown {
        /// The lockdown mode.
        mode: String,
    },
    /// The port's ACS control register is not at the standard place.
    OddRegister {
        /// The port.
        port: Sbdf,
    },
    /// The kernel runs with an ACS override, so its groups do not show the isolation.
    AcsOverride,
}

impl fmt::Display for Blocker {
    /// The reason and the remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Objection { objection } => {
                write!(f, "{objection}")?;
                match objection.remedy() {
                    Some((option, function)) => write!(f, " (accept it: --{option} {function})"),
                    None => Ok(()),
                }
            }
            Self::Stale => f.write_str(
                "the host has changed since the plan was made (make a new plan: p2pctl plan)",
            ),
            Self::Impossible { reason } => write!(f, "the host has changed: {reason}"),
            Self::Unfinished { journal } => write!(
                f,
                "an earlier change is not finished: {} (p2pctl recover)",
                journal.display()
            ),
            Self::Mounted {
                function,
                device,
                at,
            } => write!(
                f,
                "{function}: {device} is mounted on {at} (umount it, or leave {function} out)"
            ),
            Self::Swap { function, device } => write!(
                f,
                "{function}: {device} is swapped to (swapoff /dev/{device}, or leave {function} out)"
            ),
            Self::Member {
                function,
                device,
                holder,
            } => write!(
                f,
                "{function}: {device} is a part of {holder} (take {holder} down, or leave {function} out)"
            ),
            Self::InterfaceUp {
                function,
                interface,
            } => write!(
                f,
                "{function}: {interface} is up (ip link set {interface} down, or leave {function} out)"
            ),
            Self::InUse { function, user } => write!(
                f,
                "{function} is in use by {user} (shut that down, or leave {function} out)"
            ),
            Self::Driver { function, driver } => write!(
                f,
                "{function} is bound to {driver} (stop what uses it and bind it to vfio-pci, or leave {function} out)"
            ),
            Self::Shared { devices } => {
                let whose = devices.iter().map(|(at, vm)| format!("{at} ({vm})"));
                let whose: Vec<String> = whose.collect();
                write!(
                    f,
                    "{} would be in one IOMMU group, which only one VM can open (leave the devices of the others out)",
                    whose.join(" ")
                )
            }
            Self::Exposed { vm, exposure } => write!(
                f,
                "devices would come back to {vm} although {exposure} (accept it: --expose {})",
                exposure.function
            ),
            Self::Plugged { function, vm, id } => write!(
                f,
                "{function} is plugged in {vm} (p2pctl vm remove {id} --api-socket that of {vm})"
            ),
            Self::NotOwned { function, kind, of } => write!(
                f,
                "{function} is not yours, and a {kind} reset of {of} hits it (ask for another kind: p2pctl reset-scope \
                 {of})"
            ),
            Self::NoReset { function, kinds } => write!(
                f,
                "{function} has no reset of kind {kinds} (those that it has: p2pctl reset-scope {function})"
            ),
            Self::NoLinkReset { port } => write!(
                f,
                "this kernel cannot reset the bus below {port} on request (linux 6.13 and later can)"
            ),
            Self::Vmm { error } => write!(f, "{error} (it may have one of the devices)"),
            Self::Unwilling { error } => f.write_str(error),
            Self::Memory {
                vm,
                function,
                memory,
                hole,
            } => write!(
                f,
                "{function} would not reach memory of {vm} ({:#x}-{:#x}) at {hole} (restart {vm} with {function}: p2p-vmm \
                 keeps that range free of memory; or leave {function} out)",
                memory.start(),
                memory.end()
            ),
            Self::Lockdown { mode } => write!(
                f,
                "the kernel is locked down ({mode}): ACS cannot be written (switch Secure Boot off, or use p2pctl \
                 kernel-args)"
            ),
            Self::OddRegister { port } => write!(
                f,
                "{port} has Intel's own layout of ACS registers, which is not written at run time (use \
                 p2pctl kernel-args)"
            ),
            Self::AcsOverride => f.write_str(
                "the kernel runs with pcie_acs_override=, so its groups do not show the isolation (boot without it)",
            ),
        }
    }
}

/// A plan is not carried out, for these reasons. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Refusal {
    /// The reasons; at least one.
    pub blockers: Vec<Blocker>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, blocker) in self.blockers.iter().enumerate() {
            let gap = if index == 0 { "" } else { "; " };
            write!(f, "{gap}{blocker}")?;
        }
        Ok(())
    }
}
