//! Reasons why a plan is not carried out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use iommu_group::{Exposure, MemoryHole, Sbdf, Warning};
use serde::{Deserialize, Serialize};

use super::action::list;

/// A condition that has to be removed before a plan can be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "blocker", rename_all = "kebab-case")]
pub enum Blocker {
    /// The plan does something that was not requested.
    #[error("{warning}{}", remedy(warning))]
    #[serde(rename = "objection")]
    Warning {
        /// The effect.
        #[serde(rename = "objection")]
        warning: Warning,
    },
    /// The same goals result in a different plan now.
    #[error("the host has changed since the plan was made (make a new plan: p2pctl plan)")]
    Stale,
    /// The goals are no longer possible.
    #[error("the host has changed: {reason}")]
    #[serde(rename = "impossible")]
    Infeasible {
        /// The cause.
        reason: String,
    },
    /// An earlier transaction is not finished.
    #[error("an earlier change is not finished: {} (p2pctl recover)", journal.display())]
    Unfinished {
        /// Its journal.
        journal: PathBuf,
    },
    /// A file system of the device is mounted.
    #[error("{function}: {device} is mounted on {at} (umount it, or leave {function} out)")]
    Mounted {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
        /// The mount point.
        at: String,
    },
    /// The device is used as swap space.
    #[error(
        "{function}: {device} is in use as swap space (swapoff /dev/{device}, or leave {function} out)"
    )]
    Swap {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
    },
    /// The device is a member of another block device: LVM, MD, dm-crypt.
    #[error("{function}: {device} is part of {holder} (stop {holder}, or leave {function} out)")]
    Member {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
        /// The other block device.
        holder: String,
    },
    /// A network interface of the device is up.
    #[error(
        "{function}: {interface} is up (ip link set {interface} down, or leave {function} out)"
    )]
    InterfaceUp {
        /// The function.
        function: Sbdf,
        /// The interface.
        interface: String,
    },
    /// A process has the device, or another one of its group, open.
    #[error("{function} is in use by {user} (shut that down, or leave {function} out)")]
    InUse {
        /// The function.
        function: Sbdf,
        /// The process.
        user: String,
    },
    /// A driver other than VFIO uses the function.
    #[error(
        "{function} is bound to {driver} (stop what uses it and bind it to vfio-pci, or leave {function} out)"
    )]
    Driver {
        /// The function.
        function: Sbdf,
        /// The driver.
        driver: String,
    },
    /// Devices of several virtual machines would be in one group, which only one VMM at a time can open.
    #[error(
        "{} would be in one IOMMU group, which only one VM can open (leave out the devices of the other VMs)",
        with_owners(devices)
    )]
    Shared {
        /// The devices and their virtual machines.
        devices: BTreeMap<Sbdf, String>,
    },
    /// A virtual machine's devices would come back with an exposure: they and another function would reach each other
    /// without the IOMMU.
    #[error(
        "devices of {vm} would come back exposed: {exposure} (accept it: --expose {})", exposure.function
    )]
    Exposed {
        /// The virtual machine.
        vm: String,
        /// The exposure.
        exposure: Exposure,
    },
    /// A function that would be reset is plugged in a virtual machine.
    #[error("{function} is plugged in {vm} (p2pctl vm remove {id} --api-socket that of {vm})")]
    Plugged {
        /// The function.
        function: Sbdf,
        /// The virtual machine.
        vm: String,
        /// Name of the device in the virtual machine.
        id: String,
    },
    /// The reset would hit a function that the caller does not own.
    #[error(
        "{function} is not among the owned functions, and a {kind} reset of {of} also resets it (use another kind: \
         p2pctl reset-scope {of})"
    )]
    NotOwned {
        /// The function.
        function: Sbdf,
        /// The kind of the reset.
        kind: String,
        /// The function to reset.
        of: Sbdf,
    },
    /// The function has no reset of the requested kinds.
    #[error(
        "{function} has no reset of kind {kinds} (those that it has: p2pctl reset-scope {function})"
    )]
    NoReset {
        /// The function.
        function: Sbdf,
        /// The requested kinds.
        kinds: String,
    },
    /// The kernel cannot reset a link with several functions on request.
    #[error("this kernel cannot reset the bus below {port} on request (linux 6.13 and later can)")]
    NoLinkReset {
        /// The port above the link.
        port: Sbdf,
    },
    /// A virtual machine did not list its devices.
    #[error("{error} (it may have one of the devices)")]
    Vmm {
        /// The error.
        error: String,
    },
    /// A virtual machine cannot take its devices back as planned.
    #[error("{error}")]
    Unwilling {
        /// The reason and the remedy.
        error: String,
    },
    /// A device would not reach a part of the guest's memory, which cannot move while the guest runs.
    #[error(
        "{function} would not reach memory of {vm} ({:#x}-{:#x}) at {hole} (restart {vm} with {function}: p2p-vmm keeps \
         that range free of memory; or leave {function} out)",
        memory.start(),
        memory.end()
    )]
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
    #[error(
        "the kernel is locked down ({mode}): ACS cannot be written (switch Secure Boot off, or use p2pctl kernel-args)"
    )]
    Lockdown {
        /// The lockdown mode.
        mode: String,
    },
    /// The port's ACS control register is not at the standard place.
    #[error(
        "{port} has a nonstandard layout of ACS registers, which cannot be written at run time (use p2pctl kernel-args)"
    )]
    OddRegister {
        /// The port.
        port: Sbdf,
    },
    /// The kernel runs with an ACS override, so its groups do not show the isolation.
    #[error(
        "the kernel runs with pcie_acs_override=, so its groups do not show the isolation (boot without it)"
    )]
    AcsOverride,
}

fn remedy(warning: &Warning) -> String {
    let remedy = warning.remedy();
    remedy.map_or_else(String::new, |(option, function)| {
        format!(" (accept it: --{option} {function})")
    })
}

fn with_owners(devices: &BTreeMap<Sbdf, String>) -> String {
    list(devices.iter().map(|(at, vm)| format!("{at} ({vm})")))
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
