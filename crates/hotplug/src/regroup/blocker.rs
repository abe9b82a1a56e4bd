//! Why a plan is not carried out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use iommu_group::{Exposure, MemoryHole, Sbdf, Warning};
use serde::{Deserialize, Serialize};

/// Something that has to be dealt with before a plan may be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "blocker", rename_all = "kebab-case")]
pub enum Blocker {
    /// The plan does something that was not asked for.
    Objection {
        /// What.
        objection: Warning,
    },
    /// The same goals give another plan now.
    Stale,
    /// The goals cannot be reached any more.
    Impossible {
        /// Why not.
        reason: String,
    },
    /// A transaction has not come to its end.
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
        /// Where it is mounted.
        at: String,
    },
    /// The kernel swaps to the device.
    Swap {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
    },
    /// The device is a part of another: LVM, MD, dm-crypt.
    Member {
        /// The function.
        function: Sbdf,
        /// The block device.
        device: String,
        /// What it is a part of.
        holder: String,
    },
    /// A network interface of the device is up.
    InterfaceUp {
        /// The function.
        function: Sbdf,
        /// The interface.
        interface: String,
    },
    /// A process has the device, or another of its group, open.
    InUse {
        /// The function.
        function: Sbdf,
        /// The process.
        user: String,
    },
    /// A driver is bound that serves somebody.
    Driver {
        /// The function.
        function: Sbdf,
        /// The driver.
        driver: String,
    },
    /// Devices of several virtual machines would be in one group, which one machine at a time can have open.
    Shared {
        /// The devices, and whose they are.
        devices: BTreeMap<Sbdf, String>,
    },
    /// A virtual machine's devices would come back where they reach others without the IOMMU, or are reached so.
    Exposed {
        /// The virtual machine.
        vm: String,
        /// Who is reached by whom.
        exposure: Exposure,
    },
    /// A virtual machine has a function that would be reset.
    Plugged {
        /// The function.
        function: Sbdf,
        /// The virtual machine.
        vm: String,
        /// What the device is called in it.
        id: String,
    },
    /// A function would be reset too that is not the caller's.
    NotOwned {
        /// The function.
        function: Sbdf,
        /// The kind of the reset.
        kind: String,
        /// What was to be reset.
        of: Sbdf,
    },
    /// There is no such reset.
    NoReset {
        /// The function.
        function: Sbdf,
        /// The kinds that would do.
        kinds: String,
    },
    /// The kernel has no call for the reset of a link that several functions are on.
    NoLinkReset {
        /// The port above the link.
        port: Sbdf,
    },
    /// A virtual machine does not say what it has.
    Vmm {
        /// What happened.
        error: String,
    },
    /// A virtual machine could not have its devices as they would come back.
    Unwilling {
        /// Why, and what to do about it.
        error: String,
    },
    /// A device would not reach memory of a guest, which stays where it is while the guest runs.
    Memory {
        /// The virtual machine.
        vm: String,
        /// The device.
        function: Sbdf,
        /// First and last address of the memory.
        memory: RangeInclusive<u64>,
        /// Where it would be out of reach, and why.
        hole: MemoryHole,
    },
    /// The kernel keeps even root from configuration space.
    Lockdown {
        /// How it calls that.
        mode: String,
    },
    /// The port's ACS control register is not where that of others is.
    OddRegister {
        /// The port.
        port: Sbdf,
    },
    /// The kernel takes ports for isolating that are not, so that its groups mean nothing.
    AcsOverride,
}

impl fmt::Display for Blocker {
    /// The reason, and what to do about it.
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
                "the host has changed since the plan was made (make it anew: p2pctl plan)",
            ),
            Self::Impossible { reason } => write!(f, "the host has changed: {reason}"),
            Self::Unfinished { journal } => write!(
                f,
                "an earlier change has not come to its end: {} (p2pctl recover)",
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
                    "{} would be in one IOMMU group, which one VM at a time can have (leave the devices of the others out)",
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
                "this kernel resets what is below {port} for no one but a driver (linux 6.13 and later do)"
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
                "{function} would not reach memory of {vm} ({:#x}-{:#x}) at {hole} (start {vm} anew with {function}: p2p-vmm \
                 keeps memory clear of that; or leave {function} out)",
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
                "the ACS registers of {port} are laid out in Intel's own way, which is not written at run time (use \
                 p2pctl kernel-args)"
            ),
            Self::AcsOverride => f.write_str(
                "the kernel runs with pcie_acs_override=, so its groups say nothing about isolation (boot without it)",
            ),
        }
    }
}

/// A plan that is not carried out, with all reasons. Nothing was changed.
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
