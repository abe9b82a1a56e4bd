//! Requests that cloud-hypervisor cannot fulfil, and hints for the user.

use std::fmt;
use std::path::PathBuf;

use iommu_group::{MemoryHole, Sbdf, SysfsError, assignment};
use thiserror::Error;

use super::version::Version;

/// Why a VM is not started as requested. Nothing was changed.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    /// The devices are refused for every VMM.
    #[error(transparent)]
    Assignment(#[from] assignment::Refusal),
    /// The host does not have the device, or no IOMMU protects it.
    #[error("{source}\n       {}", hint(source))]
    Host { source: SysfsError },
    /// The request is refused for cloud-hypervisor only.
    #[error("{}", Lines(.0))]
    Limits(Vec<Limit>),
}

impl Refusal {
    /// All reasons, each with a hint.
    pub(crate) fn reasons(&self) -> Vec<String> {
        match self {
            Self::Assignment(refusal) => refusal.reasons.iter().map(ToString::to_string).collect(),
            Self::Limits(limits) => limits.iter().map(ToString::to_string).collect(),
            Self::Host { .. } => vec![self.to_string()],
        }
    }
}

fn hint(error: &SysfsError) -> &'static str {
    match error {
        SysfsError::NoGroup { .. } => {
            "an IOMMU is needed: intel_iommu=on or amd_iommu=on, and VT-d or AMD-Vi in the firmware"
        }
        _ => {
            "give the directory of a PCI function, path=/sys/bus/pci/devices/0000:03:00.0 (lspci -D lists them)"
        }
    }
}

struct Lines<'a>(&'a [Limit]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, limit) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{limit}")?;
        }
        Ok(())
    }
}

/// A limit of cloud-hypervisor. The message ends with a hint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Limit {
    /// More than one domain.
    #[error(
        "a VM of cloud-hypervisor has one IOMMU context, so all peers are in one P2P domain: {a} and {b} are not\n       \
         give both the same p2p_domain, or use p2p-vmm, which has a context for each domain"
    )]
    Domains { a: Sbdf, b: Sbdf },
    /// A device outside of the domain.
    #[error(
        "{other} cannot be isolated from the BARs of {peer}: cloud-hypervisor maps them for every device of the VM\n       \
         give p2p=on to {other} as well, remove it from this VM, or use p2p-vmm, which isolates it from peers"
    )]
    Outsider { peer: Sbdf, other: String },
    /// A device that may only initiate requests.
    #[error(
        "the policy hides the BARs of {device} from its peers, and cloud-hypervisor maps the BARs of all devices\n       \
         omit p2p=on for it, or use p2p-vmm, which maps BARs separately"
    )]
    Hidden { device: Sbdf },
    /// Peers that need their BARs at the bus addresses.
    #[error(
        "{a} and {b} would reach each other directly across a switch, by bus address, and cloud-hypervisor chooses other addresses for BARs\n       \
         p2pctl plan --join {a} {b} --route iommu   shows how to route such requests through the IOMMU\n       \
         or use p2p-vmm, which keeps bus addresses"
    )]
    BusAddress { a: Sbdf, b: Sbdf },
    /// A BAR may get an address at which requests do not reach the IOMMU.
    #[error(
        "requests from {from} to {to} may be misrouted: cloud-hypervisor may place a BAR of {to} at {hole}\n       \
         omit p2p=on, or use p2p-vmm, which chooses free addresses"
    )]
    Window {
        from: Sbdf,
        to: Sbdf,
        hole: MemoryHole,
    },
    /// Guest memory is at an address at which requests do not reach the IOMMU.
    #[error(
        "requests of {device} would not reach guest memory at {hole}\n       \
         give the guest less memory, so that it ends below {:#x}, or use p2p-vmm, which leaves such addresses free",
        hole.range.start()
    )]
    Memory { device: Sbdf, hole: MemoryHole },
    /// Peers behind the guest's virtual IOMMU.
    #[error(
        "{device} cannot have both p2p=on and iommu=on: cloud-hypervisor maps no BARs for devices behind a virtual IOMMU\n       \
         omit one of the two"
    )]
    VirtualIommu { device: Sbdf },
    /// A version that always maps all BARs.
    #[error(
        "cloud-hypervisor {version} maps the BARs of all devices of a VM for each other, and this cannot be disabled\n       \
         use v52.0 or newer, or give p2p=on to all of them if they should be peers"
    )]
    AlwaysOn { version: Version },
    /// P2P is switched on for all devices.
    #[error(
        "vfio_p2p_dma=on lets every device of the VM reach all others, and not all of them have p2p=on\n       \
         omit it, and give p2p=on to the devices that should be peers"
    )]
    ForAll,
    /// P2P is switched off.
    #[error("{device} has p2p=on, but vfio_p2p_dma=off disables P2P\n       omit one of the two")]
    SwitchedOff { device: Sbdf },
    /// A clique without peers.
    #[error(
        "x_nv_gpudirect_clique tells the guest's driver that {device} has peers, but it does not have p2p=on\n       \
         add p2p=on, which also sets the clique, or omit the clique"
    )]
    Clique { device: Sbdf },
    /// A running VM that maps the BARs of all devices.
    #[error(
        "this VM maps every BAR for every device, and {device} does not have p2p=on\n       \
         start the VM with vfio_p2p_dma=off in its platform (v52.0 and newer; p2pctl launch does this), or give p2p=on to all its devices"
    )]
    Mapped { device: String },
    /// A peer that was added beside devices that are not peers, and so has no mapped BARs.
    #[error(
        "{device} has p2p=on but was added to a VM with devices without p2p=on, so its BARs are not mapped and peers cannot reach it\n       \
         remove those devices and {device}, and then add the peers; or use p2p-vmm, which isolates peers from other devices"
    )]
    WithoutBars { device: String },
    /// A device whose removal was requested and that the guest still has.
    #[error(
        "the removal of {id} was requested, and the guest has not released it: in the VM's one IOMMU context, it and the new device could reach each other\n       \
         try again after the event device-removed, when the device_tree in vm.info no longer has {id}"
    )]
    Leaving { id: String },
    /// A running VM with too many address bits.
    #[error(
        "the guest has {guest} address bits, and BARs at the top of this range cannot be reached: it may have {bits}\n       \
         start the VM with max_phys_bits={bits} in its cpus"
    )]
    Bits { guest: u8, bits: u8 },
    /// A device that is passed as a descriptor, so that its function is unknown.
    #[error(
        "the PCI function behind a descriptor is unknown ({options}), so it cannot be checked\n       \
         give path=/sys/bus/pci/devices/… instead of fd="
    )]
    Descriptor { options: String },
    /// A vDPA device without a PCI function.
    #[error(
        "no PCI function is behind the vDPA device {}, so it cannot be checked\n       \
         add it at cloud-hypervisor's own socket, if its provider may access all guest memory",
        path.display()
    )]
    Vdpa { path: PathBuf },
    /// A vDPA device that shares its IOMMU group.
    #[error(
        "{function}, which is behind {}, shares its IOMMU group with {neighbour}, which is bound to {driver}\n       \
         unbind {neighbour} from {driver}, or use a function that is alone in its group",
        path.display()
    )]
    VdpaNeighbour {
        path: PathBuf,
        function: Sbdf,
        neighbour: String,
        driver: String,
    },
    /// The guest's memory size cannot be parsed.
    #[error(
        "the size of the guest's memory is unknown, and for devices behind a switch it must be outside of the switch's windows\n       \
         give --memory size=, and a size for each --memory-zone"
    )]
    UnknownMemory,
    /// Not enough address space.
    #[error(
        "{memory_end:#x} bytes of guest memory and 64-bit BARs do not fit into the {bits} address bits that the IOMMU \
         translates\n       give the guest less memory"
    )]
    TooLarge { memory_end: u64, bits: u8 },
}
