//! Reasons to refuse an assignment.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use super::{Exposed, UnsafeInterrupts};
use crate::policy::PolicyReason;
use crate::{AddressRange, Denial, DriverKind, Gpa, GroupId, MemoryHole, Sbdf, UntranslatedReach};

/// A refused assignment. Nothing was changed.
#[derive(Debug, Error)]
pub struct Refusal {
    /// Every reason, most fundamental first; never empty.
    pub reasons: Vec<Reason>,
}

impl Refusal {
    /// Returns a refusal if there are reasons.
    pub(super) fn of(reasons: Vec<Reason>) -> Result<(), Self> {
        match reasons.is_empty() {
            true => Ok(()),
            false => Err(Self { reasons }),
        }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reasons: vec![reason],
        }
    }
}

impl fmt::Display for Refusal {
    /// Writes a line for each reason; `{:#}` adds hints, which name commands of this project.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HINT: &str = "       ";
        let texts: Vec<String> = self.reasons.iter().map(ToString::to_string).collect();
        let with_hints = f.alternate();
        let lines = texts.iter().flat_map(|text| text.lines());
        let lines = lines.filter(|line| with_hints || !line.starts_with(HINT));
        for (n, line) in lines.enumerate() {
            let end = if n > 0 { "\n" } else { "" };
            write!(f, "{end}{line}")?;
        }
        Ok(())
    }
}

/// One reason of a [`Refusal`]. Its text ends with hints, in lines that are indented.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// A function is requested twice, possibly by different paths.
    #[error("{0} is given twice\n       name every device once")]
    Twice(Sbdf),
    /// The device is not bound to vfio-pci or one of its variants.
    #[error(
        "{sbdf} is not bound to vfio-pci: {}\n       \
         echo vfio-pci > /sys/bus/pci/devices/{sbdf}/driver_override, unbind it from its driver, then\n       \
         echo {sbdf} > /sys/bus/pci/drivers_probe",
        Driver(driver)
    )]
    NotBound {
        /// The requested device.
        sbdf: Sbdf,
        /// Its driver.
        driver: Option<String>,
    },
    /// Another function in the group is bound to a host driver.
    #[error(
        "{sbdf} cannot be assigned alone: {neighbour} in its IOMMU group {group} is bound to {driver}\n       \
         bind {neighbour} to vfio-pci as well, or unbind it from {driver}"
    )]
    Neighbour {
        /// The requested device.
        sbdf: Sbdf,
        /// The group of both.
        group: GroupId,
        /// The other function.
        neighbour: String,
        /// The driver of the other function.
        driver: String,
    },
    /// Peer-to-peer between devices of different groups.
    #[error(
        "{} and {} cannot share P2P: IOMMU group {} and group {}\n       \
         p2pctl explain {} {}   says why\n       \
         p2pctl plan --join {} {}   says how they would get into one\n       \
         or leave p2p=on out, or give them p2p_domain= names of their own, to keep them apart",
        a.0, b.0, a.1, b.1, a.0, b.0, a.0, b.0
    )]
    TwoGroups {
        /// The first device and its group.
        a: (Sbdf, GroupId),
        /// The second device and its group.
        b: (Sbdf, GroupId),
    },
    /// The hardware does not route requests between peers.
    #[error(
        "{from} cannot reach {to}: {}\n       \
         p2pctl explain {from} {to}   says more\n       \
         leave p2p=on out, or give them p2p_domain= names of their own",
        Denials(reasons)
    )]
    Route {
        /// The initiator.
        from: Sbdf,
        /// The target.
        to: Sbdf,
        /// The reasons of the verdict.
        reasons: Vec<Denial>,
    },
    /// A rule of the policy forbids the domain.
    #[error(transparent)]
    Policy(#[from] PolicyReason),
    /// Devices of the VM reach functions of others without the IOMMU, or others reach them in this way.
    #[error("{}", Exposures(.0))]
    Exposed(Vec<Exposed>),
    /// The kernel does not prevent devices from raising interrupts of the host.
    #[error("{}", Interrupts(.0))]
    Interrupts(UnsafeInterrupts),
    /// The added device would need a change of a running device.
    #[error(
        "{sbdf} is in the VM already, and the added device requires {change}\n       \
         give both to the VM at one time: unplug {sbdf} first, or start the VM with both"
    )]
    Runs {
        /// The running device.
        sbdf: Sbdf,
        /// The necessary change.
        change: Change,
    },
    /// Existing guest memory is at addresses that a port above the device routes without the IOMMU.
    #[error(
        "{sbdf} cannot reach guest memory {memory} at {hole}\n       \
         give it to the VM when it starts, so that memory is laid out for it"
    )]
    Memory {
        /// The added device.
        sbdf: Sbdf,
        /// The memory range.
        memory: AddressRange<Gpa>,
        /// The part that the device cannot reach, and the cause.
        hole: MemoryHole,
    },
    /// Two devices of one group need different IOMMU contexts.
    #[error(
        "{a} and {b} cannot be kept apart: both are in IOMMU group {group}, which the IOMMU translates as one\n       \
         give p2p=on with the same p2p_domain to both, or to neither"
    )]
    SplitGroup {
        /// A device with `p2p=on`.
        a: Sbdf,
        /// A device without `p2p=on`, or of another domain.
        b: Sbdf,
        /// The group of both.
        group: GroupId,
    },
}

/// A change of a running device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Hide its BARs from its peers.
    Hide,
    /// Show its BARs to its peers.
    Show,
    /// Move its BARs to their bus addresses, or away from them.
    Move,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hide => "hiding its BARs from its peers",
            Self::Show => "showing its BARs to its peers",
            Self::Move => "moving its BARs",
        })
    }
}

/// Renders interrupts that may not be isolated, with advice.
struct Interrupts<'a>(&'a UnsafeInterrupts);

impl fmt::Display for Interrupts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        for module in &self.0.modules {
            write!(
                f,
                "\n       echo N > /sys/module/{module}/parameters/allow_unsafe_interrupts"
            )?;
        }
        f.write_str(
            "\n       if devices cannot be opened then (EPERM), the host remaps no interrupts: enable that in its firmware,\n       \
             or accept it for all VMs: [unsafe-interrupts] in the policy file",
        )
    }
}

/// Renders exposures, one per line, with advice.
struct Exposures<'a>(&'a [Exposed]);

impl fmt::Display for Exposures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for exposed in self.0 {
            writeln!(f, "{}, and {}", exposed.exposure, Whose(exposed))?;
        }
        if let Some(Exposed { exposure, .. }) = self.0.first()
            && let Some(from) = exposure.to.first()
        {
            writeln!(
                f,
                "       p2pctl explain {from} {}   says why",
                exposure.function
            )?;
        }
        let unread = |exposed: &&Exposed| exposed.exposure.reach == UntranslatedReach::Unknown;
        let (unread, read): (Vec<_>, Vec<_>) = self.0.iter().partition(unread);
        let (closable, open): (Vec<_>, Vec<_>) = read.into_iter().partition(|one| one.closable);
        if !unread.is_empty() {
            let through = unread.iter().flat_map(|one| &one.exposure.through).copied();
            let through = names(through.collect(), ", ");
            writeln!(
                f,
                "       run as root if {through} cannot be read: p2pctl topology says why"
            )?;
        }
        if !closable.is_empty() {
            let devices: BTreeSet<Sbdf> = closable.iter().map(|one| one.device).collect();
            let devices = names(devices, " ");
            writeln!(
                f,
                "       p2pctl apply --isolate {devices}   makes the ports redirect requests to the IOMMU"
            )?;
        }
        if !open.is_empty() {
            let through = open.iter().flat_map(|one| &one.exposure.through).copied();
            let through = names(through.collect(), ", ");
            writeln!(
                f,
                "       {through} cannot redirect: give all of these devices to one VM, or put them below other ports"
            )?;
        }
        let functions = self.0.iter().map(|one| one.exposure.function).collect();
        write!(
            f,
            "       or accept it by name: --expose {}, or [[expose]] in the policy file",
            names(functions, ",")
        )
    }
}

fn names(functions: BTreeSet<Sbdf>, gap: &str) -> String {
    let names: Vec<String> = functions.iter().map(Sbdf::to_string).collect();
    names.join(gap)
}

/// Renders the owner of the reached function, or of the functions that reach it.
struct Whose<'a>(&'a Exposed);

impl fmt::Display for Whose<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = self.0.exposure.function;
        match (self.0.driver_kind(), &self.0.driver) {
            _ if function == self.0.device => {
                f.write_str("those that reach it may be another VM's")
            }
            (DriverKind::Vfio, _) => write!(f, "{function} may be another VM's"),
            (_, Some(driver)) => write!(f, "{function} is the host's (driver {driver})"),
            (_, None) => write!(f, "{function} is not the VM's"),
        }
    }
}

struct Denials<'a>(&'a [Denial]);

impl fmt::Display for Denials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, denial) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{denial}")?;
        }
        Ok(())
    }
}

struct Driver<'a>(&'a Option<String>);

impl fmt::Display for Driver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "its driver is {name}"),
            None => f.write_str("no driver is bound"),
        }
    }
}
