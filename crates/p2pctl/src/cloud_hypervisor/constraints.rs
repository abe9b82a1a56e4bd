//! Constraints of cloud-hypervisor: which requested devices a VM may have, and the settings that they need.

use iommu_group::assignment::{Exposed, UnsafeInterrupts};
use iommu_group::{MemoryHole, Sbdf};

use super::device::RequestedDevice;
use super::memory::{DEFAULT_BITS, GuestMemory, bars_32, overlap};
use super::refusal::Limit;
use super::version::Version;

/// Smallest number of address bits that is tried.
const FEWEST_BITS: u8 = 36;

/// Host facts about a device.
#[derive(Debug, Clone)]
pub(crate) struct DeviceProperties {
    pub(crate) sbdf: Sbdf,
    /// Whether its guest driver uses cliques.
    pub(crate) wants_clique: bool,
    /// Whether it has 32-bit and 64-bit memory BARs.
    pub(crate) bars_32: bool,
    pub(crate) bars_64: bool,
    /// Addresses at which its requests do not reach the IOMMU.
    pub(crate) holes: Vec<MemoryHole>,
}

/// Facts about the host and the VMM.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The devices, in the order of the request; `None` for a device without a path.
    pub(crate) devices: Vec<Option<DeviceProperties>>,
    /// Two peers with a direct route across a switch that requires BARs at their bus addresses.
    pub(crate) by_bus_address: Option<(Sbdf, Sbdf)>,
    /// Devices whose BARs policy hides from their peers.
    pub(crate) hidden: Vec<Sbdf>,
    /// Address bits that the IOMMU translates for all devices.
    pub(crate) iommu_bits: Option<u8>,
    /// Physical address bits of the processors; an upper limit for the guest.
    pub(crate) cpu_bits: Option<u8>,
    /// Whether Linux accepts P2PDMA between any two devices on these processors, also in guests.
    pub(crate) accepts_any_p2pdma: bool,
    /// The VMM's version, if known.
    pub(crate) version: Option<Version>,
    /// Exposures that are accepted, or that depend on the root complex or on a device.
    pub(crate) exposures: Vec<Exposed>,
    /// Set if the operator accepts that interrupts may not be isolated.
    pub(crate) unsafe_interrupts: Option<UnsafeInterrupts>,
}

/// The VM options that the constraints depend on.
#[derive(Debug, Clone, Default)]
pub(crate) struct VmOptions {
    /// `--platform vfio_p2p_dma`.
    pub(crate) p2p_dma: Option<bool>,
    /// `--cpus max_phys_bits`.
    pub(crate) bits: Option<u8>,
    /// The guest's memory, if its size can be parsed.
    pub(crate) memory: Option<GuestMemory>,
}

/// The settings that cloud-hypervisor needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Whether to switch off the mapping of BARs.
    pub(crate) p2p_off: bool,
    /// Indexes of the devices that show a clique.
    pub(crate) cliques: Vec<usize>,
    /// The maximum of the guest's address bits, and the reason.
    pub(crate) bits: Option<(u8, BitsReason)>,
    /// Addresses that guest memory uses and at which requests may not reach the IOMMU.
    pub(crate) doubtful: Vec<MemoryHole>,
}

/// Why the guest gets fewer address bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BitsReason {
    /// The IOMMU translates no more bits.
    Iommu,
    /// BARs of peers must be outside of windows that the host routes by address.
    Windows,
}

/// Computes the settings, or all limits that the request exceeds.
pub(crate) fn required_settings(
    requested: &[RequestedDevice],
    vm_options: &VmOptions,
    host: &Host,
) -> Result<Settings, Vec<Limit>> {
    let vm = Vm {
        devices: requested.iter().zip(&host.devices).collect(),
        vm_options,
        host,
    };
    let mut limits = vm.domain_limits();
    limits.extend(vm.switch_limits());
    let mut settings = Settings {
        p2p_off: vm.p2p_off(),
        cliques: vm.cliques(),
        ..Settings::default()
    };
    match vm.bits() {
        Ok(bits) => settings.bits = bits,
        Err(limit) => limits.push(limit),
    }
    match vm.memory_holes() {
        Ok(doubtful) => settings.doubtful = doubtful,
        Err(found) => limits.extend(found),
    }
    if limits.is_empty() {
        Ok(settings)
    } else {
        Err(limits)
    }
}

/// The maximum of the guest's address bits if the devices are to become peers later; `None` if there is no limit, or if
/// no number of bits works.
pub(crate) fn bits_as_peers(
    requested: &[RequestedDevice],
    vm_options: &VmOptions,
    host: &Host,
) -> Option<(u8, BitsReason)> {
    let as_peer = |device: &RequestedDevice| RequestedDevice {
        p2p: true,
        ..device.clone()
    };
    let peers: Vec<RequestedDevice> = requested.iter().map(as_peer).collect();
    let vm = Vm {
        devices: peers.iter().zip(&host.devices).collect(),
        vm_options,
        host,
    };
    vm.bits().ok().flatten()
}

struct Vm<'a> {
    devices: Vec<(&'a RequestedDevice, &'a Option<DeviceProperties>)>,
    vm_options: &'a VmOptions,
    host: &'a Host,
}

impl Vm<'_> {
    fn properties(&self) -> impl Iterator<Item = (&RequestedDevice, &DeviceProperties)> {
        let known =
            |(requested, properties): &(&'_ RequestedDevice, &'_ Option<DeviceProperties>)| {
                properties.is_some() && requested.path.is_some()
            };
        self.devices
            .iter()
            .filter(move |device| known(device))
            .filter_map(|(requested, properties)| Some((*requested, properties.as_ref()?)))
    }

    fn peers(&self) -> Vec<(&RequestedDevice, &DeviceProperties)> {
        self.properties()
            .filter(|(requested, _)| requested.p2p)
            .collect()
    }

    /// Whether BARs are not mapped at all. A single peer keeps its mapping because other peers may be added later,
    /// unless the VM also has devices that are not peers.
    fn p2p_off(&self) -> bool {
        let peers = self.peers().len();
        let others = self.devices.len().saturating_sub(peers);
        let off = !self.devices.is_empty() && (peers == 0 || peers == 1 && others > 0);
        off && self.host.version.is_none_or(Version::has_p2p_switch)
    }

    fn cliques(&self) -> Vec<usize> {
        let devices = self.devices.iter().enumerate();
        let needs = |(requested, properties): &(&RequestedDevice, &Option<DeviceProperties>)| {
            requested.p2p
                && requested.clique.is_none()
                && properties
                    .as_ref()
                    .is_some_and(|properties| properties.wants_clique)
        };
        let wanted = devices.filter(|(_, device)| !self.p2p_off() && needs(device));
        wanted.map(|(at, _)| at).collect()
    }

    /// Limits because a VM has one IOMMU context.
    fn domain_limits(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        for (requested, properties) in &self.devices {
            if requested.p2p && properties.is_none() {
                let options = requested.options.to_string();
                limits.push(Limit::Descriptor { options });
            }
        }
        let peers = self.peers();
        for (requested, properties) in &peers {
            if requested.viommu {
                limits.push(Limit::VirtualIommu {
                    device: properties.sbdf,
                });
            }
        }
        let [(first, peer), rest @ ..] = peers.as_slice() else {
            return limits;
        };
        if let Some((_, other)) = rest
            .iter()
            .find(|(requested, _)| requested.domain != first.domain)
        {
            limits.push(Limit::Domains {
                a: peer.sbdf,
                b: other.sbdf,
            });
        }
        if rest.is_empty() {
            return limits;
        }
        for (requested, properties) in self.devices.iter().filter(|(requested, _)| !requested.p2p) {
            limits.push(Limit::Outsider {
                peer: peer.sbdf,
                other: properties
                    .as_ref()
                    .map_or(requested.options.to_string(), |properties| {
                        properties.sbdf.to_string()
                    }),
            });
        }
        let hidden = self.host.hidden.iter();
        limits.extend(hidden.map(|device| Limit::Hidden { device: *device }));
        if let Some((a, b)) = self.host.by_bus_address {
            limits.push(Limit::BusAddress { a, b });
        }
        limits
    }

    /// Limits because the mapping options contradict the requested devices.
    fn switch_limits(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        let peers = self.peers();
        let several = self.devices.len() > 1;
        if let (Some(version), true) = (self.host.version, several && peers.len() < 2)
            && !version.has_p2p_switch()
        {
            limits.push(Limit::AlwaysOn { version });
        }
        match (self.vm_options.p2p_dma, peers.as_slice()) {
            (Some(true), peers) if several && peers.len() < 2 => limits.push(Limit::ForAll),
            (Some(false), [_, (_, properties), ..]) => {
                limits.push(Limit::SwitchedOff {
                    device: properties.sbdf,
                });
            }
            _ => {}
        }
        let odd = self
            .properties()
            .filter(|(requested, _)| !requested.p2p && requested.clique.is_some());
        limits.extend(odd.map(|(_, properties)| Limit::Clique {
            device: properties.sbdf,
        }));
        limits
    }

    /// The maximum of the guest's address bits at which all BARs are at permitted addresses.
    fn bits(&self) -> Result<Option<(u8, BitsReason)>, Limit> {
        if self.devices.is_empty() {
            return Ok(None);
        }
        let wanted = self.vm_options.bits.unwrap_or(DEFAULT_BITS);
        let wanted = wanted.min(self.host.cpu_bits.unwrap_or(wanted));
        let most = wanted.min(self.host.iommu_bits.unwrap_or(wanted));
        if let Some(memory) = self.vm_options.memory
            && memory.bars_64(most).is_none()
        {
            let memory_end = memory.ranges().last().map_or(0, |ram| *ram.end());
            return Err(Limit::TooLarge {
                memory_end,
                bits: most,
            });
        }
        let narrow = (most < wanted).then_some((most, BitsReason::Iommu));
        match self.misrouted(most) {
            None => Ok(narrow),
            Some(limit) => (FEWEST_BITS..most)
                .rev()
                .find(|bits| self.has_room(*bits) && self.misrouted(*bits).is_none())
                .map(|bits| Some((bits, BitsReason::Windows)))
                .ok_or(limit),
        }
    }

    fn has_room(&self, bits: u8) -> bool {
        let memory = self.vm_options.memory;
        memory.is_none_or(|memory| memory.bars_64(bits).is_some())
    }

    /// A peer request that may be routed elsewhere, if BARs can be at any address of this many bits.
    fn misrouted(&self, bits: u8) -> Option<Limit> {
        let peers = self.peers();
        // Without the size of memory, 64-bit BARs may be anywhere above 4 GiB.
        let memory = self.vm_options.memory.unwrap_or(GuestMemory {
            boot: 0,
            plugged: 0,
        });
        let high = memory.bars_64(bits);
        for (_, from) in &peers {
            for (_, to) in peers.iter().filter(|(_, to)| to.sbdf != from.sbdf) {
                let low = to.bars_32.then(bars_32);
                let high = high.clone().filter(|_| to.bars_64);
                let places = low.into_iter().chain(high);
                for place in places {
                    if let Some(hole) = MemoryHole::worst(&from.holes, &place) {
                        return Some(Limit::Window {
                            from: from.sbdf,
                            to: to.sbdf,
                            hole: hole.clone(),
                        });
                    }
                }
            }
        }
        None
    }

    /// Checks that requests for guest memory reach the IOMMU. Returns the addresses at which that is uncertain, as
    /// behind some root ports.
    fn memory_holes(&self) -> Result<Vec<MemoryHole>, Vec<Limit>> {
        let Some(memory) = self.vm_options.memory else {
            let any = self
                .properties()
                .any(|(_, properties)| !properties.holes.is_empty());
            return if any {
                Err(vec![Limit::UnknownMemory])
            } else {
                Ok(Vec::new())
            };
        };
        let mut limits = Vec::new();
        let mut doubtful: Vec<MemoryHole> = Vec::new();
        for (_, properties) in self.properties() {
            for ram in memory.ranges() {
                let certain = properties.holes.iter().filter(|hole| hole.certain);
                limits.extend(MemoryHole::worst(certain, &ram).map(|hole| Limit::Memory {
                    device: properties.sbdf,
                    hole: hole.clone(),
                }));
                let hit = |hole: &&MemoryHole| overlap(&ram, &hole.range).is_some();
                doubtful.extend(properties.holes.iter().filter(hit).cloned());
            }
        }
        doubtful.dedup();
        if limits.is_empty() {
            Ok(doubtful)
        } else {
            Err(limits)
        }
    }
}

#[cfg(test)]
#[path = "constraints/tests.rs"]
mod tests;
