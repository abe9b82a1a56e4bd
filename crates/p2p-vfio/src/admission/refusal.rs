//! Why devices are not given to a VM as asked, and what to do about it.

use std::fmt;

use iommu_group::{Denial, GroupId, Sbdf};
use thiserror::Error;

use crate::policy::PolicyReason;

/// Why a set of devices may not be given to a VM as asked. Nothing was changed.
#[derive(Debug, Error)]
#[error("{}", Lines(reasons))]
pub struct Refusal {
    /// Every reason, most fundamental first; never empty.
    pub reasons: Vec<Reason>,
}

struct Lines<'a>(&'a [Reason]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, reason) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{reason}")?;
        }
        Ok(())
    }
}

/// One reason of a [`Refusal`]; its text ends with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// The same function twice, whatever the paths were.
    #[error("{0} is given twice\n       name every device once")]
    Twice(Sbdf),
    /// Not bound to vfio-pci or one of its variants.
    #[error(
        "{sbdf} is not bound to vfio-pci: {}\n       \
         echo vfio-pci > /sys/bus/pci/devices/{sbdf}/driver_override, unbind it from its driver, then\n       \
         echo {sbdf} > /sys/bus/pci/drivers_probe",
        Driver(driver)
    )]
    NotBound {
        /// The device asked for.
        sbdf: Sbdf,
        /// What drives it.
        driver: Option<String>,
    },
    /// A neighbour in the group is in the host's hands.
    #[error(
        "{sbdf} cannot leave the host alone: {neighbour} in its IOMMU group {group} is driven by {driver}\n       \
         bind {neighbour} to vfio-pci as well, or unbind it from {driver}"
    )]
    Neighbour {
        /// The device asked for.
        sbdf: Sbdf,
        /// The group of both.
        group: GroupId,
        /// Who shares it.
        neighbour: String,
        /// What drives the neighbour.
        driver: String,
    },
    /// Peer-to-peer across groups.
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
    /// The hardware does not carry requests between peers.
    #[error(
        "{from} cannot reach {to}: {}\n       \
         p2pctl explain {from} {to}   says more\n       \
         leave p2p=on out, or give them p2p_domain= names of their own",
        Denials(reasons)
    )]
    Route {
        /// The device that would send.
        from: Sbdf,
        /// The device that would be reached.
        to: Sbdf,
        /// Why not.
        reasons: Vec<Denial>,
    },
    /// The operator's policy, or the table of devices that are no ordinary peers.
    #[error(transparent)]
    Policy(#[from] PolicyReason),
    /// A device that comes would change one that runs.
    #[error(
        "{sbdf} runs, and {change} for the device that comes\n       \
         give both to the VM at one time: unplug {sbdf} first, or start the VM with both"
    )]
    Runs {
        /// The device that runs.
        sbdf: Sbdf,
        /// What would have to be done with it.
        change: Change,
    },
    /// One group cannot be in two IOMMU contexts.
    #[error(
        "{a} and {b} cannot be kept apart: both are in IOMMU group {group}, which the IOMMU translates as one\n       \
         give p2p=on with the same p2p_domain to both, or to neither"
    )]
    SplitGroup {
        /// A device with `p2p=on`.
        a: Sbdf,
        /// A device without, or of another domain.
        b: Sbdf,
        /// The group of both.
        group: GroupId,
    },
}

/// What would have to be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its BARs taken from its peers.
    Hide,
    /// Its BARs shown to its peers.
    Show,
    /// Its BARs put to their bus addresses, or anywhere.
    Move,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hide => "its BARs would have to be taken from its peers",
            Self::Show => "its BARs would have to be shown to its peers",
            Self::Move => "its BARs would have to move",
        })
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
