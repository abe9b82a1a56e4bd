//! What a VM of cloud-hypervisor may have of what is asked for, and how it has to be told.

use iommu_group::assignment::{Exposed, UnsafeInterrupts};
use iommu_group::{MemoryHole, Sbdf};

use super::device::Asked;
use super::memory::{DEFAULT_BITS, GuestMemory, bars_32, overlap};
use super::refusal::Limit;
use super::version::Version;

/// Fewer address bits are not tried.
const FEWEST_BITS: u8 = 36;

/// What the host says of a device.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) sbdf: Sbdf,
    /// Whether its driver in the guest asks for a clique.
    pub(crate) wants_clique: bool,
    /// Whether it has memory BARs of 32 and of 64 bits.
    pub(crate) bars_32: bool,
    pub(crate) bars_64: bool,
    /// Addresses at which its requests do not get to the IOMMU.
    pub(crate) holes: Vec<MemoryHole>,
}

/// What is known of host and VMM.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The devices, in the order in which they are asked for; `None` for one without a path.
    pub(crate) devices: Vec<Option<Facts>>,
    /// Two peers whose requests go straight across a switch, by bus address.
    pub(crate) by_bus_address: Option<(Sbdf, Sbdf)>,
    /// Devices whose BARs are to be kept from their peers, as policy has it.
    pub(crate) hidden: Vec<Sbdf>,
    /// Address bits that the IOMMU translates for all of them.
    pub(crate) iommu_bits: Option<u8>,
    /// Physical address bits of the processors, which a guest has no more of.
    pub(crate) cpu_bits: Option<u8>,
    /// Whether Linux on its processors accepts P2PDMA between any two devices, in guests too.
    pub(crate) accepts_any_p2pdma: bool,
    /// The VMM, if it said which it is.
    pub(crate) version: Option<Version>,
    /// Exposures that are accepted, or up to the root complex or a device.
    pub(crate) exposures: Vec<Exposed>,
    /// Set if the operator accepts that interrupts may not be isolated.
    pub(crate) unsafe_interrupts: Option<UnsafeInterrupts>,
}

/// What else the command line says that matters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// `--platform vfio_p2p_dma`.
    pub(crate) p2p_dma: Option<bool>,
    /// `--cpus max_phys_bits`.
    pub(crate) bits: Option<u8>,
    /// The guest's memory, if it can be made out.
    pub(crate) memory: Option<GuestMemory>,
}

/// How cloud-hypervisor has to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Switch the mapping of BARs off.
    pub(crate) p2p_off: bool,
    /// Which devices show a clique, by their place in the list.
    pub(crate) cliques: Vec<usize>,
    /// The most address bits that the guest may have, and why.
    pub(crate) bits: Option<(u8, BitsReason)>,
    /// Addresses at which guest memory will be, and where requests are not known to get to the IOMMU.
    pub(crate) doubtful: Vec<MemoryHole>,
}

/// Why address bits are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BitsReason {
    /// The IOMMU translates no more.
    Iommu,
    /// BARs of peers must keep clear of windows that the host routes by address.
    Windows,
}

/// Decides; every limit is named.
pub(crate) fn settle(
    asked: &[Asked],
    wishes: &Wishes,
    host: &Host,
) -> Result<Settings, Vec<Limit>> {
    let vm = Vm {
        devices: asked.iter().zip(&host.devices).collect(),
        wishes,
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

/// The most address bits that the guest may have if the devices are ever to be peers; `None` if any will do, or none.
pub(crate) fn bits_as_peers(
    asked: &[Asked],
    wishes: &Wishes,
    host: &Host,
) -> Option<(u8, BitsReason)> {
    let as_peer = |device: &Asked| Asked {
        p2p: true,
        ..device.clone()
    };
    let peers: Vec<Asked> = asked.iter().map(as_peer).collect();
    let vm = Vm {
        devices: peers.iter().zip(&host.devices).collect(),
        wishes,
        host,
    };
    vm.bits().ok().flatten()
}

struct Vm<'a> {
    devices: Vec<(&'a Asked, &'a Option<Facts>)>,
    wishes: &'a Wishes,
    host: &'a Host,
}

impl Vm<'_> {
    fn facts(&self) -> impl Iterator<Item = (&Asked, &Facts)> {
        let known = |(asked, facts): &(&'_ Asked, &'_ Option<Facts>)| {
            facts.is_some() && asked.path.is_some()
        };
        self.devices
            .iter()
            .filter(move |device| known(device))
            .filter_map(|(asked, facts)| Some((*asked, facts.as_ref()?)))
    }

    fn peers(&self) -> Vec<(&Asked, &Facts)> {
        self.facts().filter(|(asked, _)| asked.p2p).collect()
    }

    /// Whether BARs are to be mapped for none. A device that asked alone may get company later, unless somebody else
    /// is there.
    fn p2p_off(&self) -> bool {
        let peers = self.peers().len();
        let others = self.devices.len().saturating_sub(peers);
        let off = !self.devices.is_empty() && (peers == 0 || peers == 1 && others > 0);
        off && self.host.version.is_none_or(Version::has_p2p_switch)
    }

    fn cliques(&self) -> Vec<usize> {
        let devices = self.devices.iter().enumerate();
        let needs = |(asked, facts): &(&Asked, &Option<Facts>)| {
            asked.p2p
                && asked.clique.is_none()
                && facts.as_ref().is_some_and(|facts| facts.wants_clique)
        };
        let wanted = devices.filter(|(_, device)| !self.p2p_off() && needs(device));
        wanted.map(|(at, _)| at).collect()
    }

    /// One context for all.
    fn domain_limits(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        for (asked, facts) in &self.devices {
            if asked.p2p && facts.is_none() {
                let options = asked.options.to_string();
                limits.push(Limit::Descriptor { options });
            }
        }
        let peers = self.peers();
        for (asked, facts) in &peers {
            if asked.viommu {
                limits.push(Limit::VirtualIommu { device: facts.sbdf });
            }
        }
        let [(first, peer), rest @ ..] = peers.as_slice() else {
            return limits;
        };
        if let Some((_, other)) = rest.iter().find(|(asked, _)| asked.domain != first.domain) {
            limits.push(Limit::Domains {
                a: peer.sbdf,
                b: other.sbdf,
            });
        }
        if rest.is_empty() {
            return limits;
        }
        for (asked, facts) in self.devices.iter().filter(|(asked, _)| !asked.p2p) {
            limits.push(Limit::Outsider {
                peer: peer.sbdf,
                other: facts
                    .as_ref()
                    .map_or(asked.options.to_string(), |facts| facts.sbdf.to_string()),
            });
        }
        let hidden = self.host.hidden.iter();
        limits.extend(hidden.map(|device| Limit::Hidden { device: *device }));
        if let Some((a, b)) = self.host.by_bus_address {
            limits.push(Limit::BusAddress { a, b });
        }
        limits
    }

    /// What the command line says of the mapping of BARs must be what was asked for.
    fn switch_limits(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        let peers = self.peers();
        let several = self.devices.len() > 1;
        if let (Some(version), true) = (self.host.version, several && peers.len() < 2)
            && !version.has_p2p_switch()
        {
            limits.push(Limit::AlwaysOn { version });
        }
        match (self.wishes.p2p_dma, peers.as_slice()) {
            (Some(true), peers) if several && peers.len() < 2 => limits.push(Limit::ForAll),
            (Some(false), [_, (_, facts), ..]) => {
                limits.push(Limit::SwitchedOff { device: facts.sbdf });
            }
            _ => {}
        }
        let odd = self
            .facts()
            .filter(|(asked, _)| !asked.p2p && asked.clique.is_some());
        limits.extend(odd.map(|(_, facts)| Limit::Clique { device: facts.sbdf }));
        limits
    }

    /// The most address bits with which no BAR can be where it must not.
    fn bits(&self) -> Result<Option<(u8, BitsReason)>, Limit> {
        if self.devices.is_empty() {
            return Ok(None);
        }
        let wanted = self.wishes.bits.unwrap_or(DEFAULT_BITS);
        let wanted = wanted.min(self.host.cpu_bits.unwrap_or(wanted));
        let most = wanted.min(self.host.iommu_bits.unwrap_or(wanted));
        if let Some(memory) = self.wishes.memory
            && memory.bars_64(most).is_none()
        {
            let memory_end = memory.ranges().last().map_or(0, |ram| *ram.end());
            return Err(Limit::TooLarge {
                memory_end,
                bits: most,
            });
        }
        let narrow = (most < wanted).then_some((most, BitsReason::Iommu));
        match self.astray(most) {
            None => Ok(narrow),
            Some(limit) => (FEWEST_BITS..most)
                .rev()
                .find(|bits| self.has_room(*bits) && self.astray(*bits).is_none())
                .map(|bits| Some((bits, BitsReason::Windows)))
                .ok_or(limit),
        }
    }

    fn has_room(&self, bits: u8) -> bool {
        let memory = self.wishes.memory;
        memory.is_none_or(|memory| memory.bars_64(bits).is_some())
    }

    /// A request between peers that may be taken for another, if BARs may be anywhere below this many bits.
    fn astray(&self, bits: u8) -> Option<Limit> {
        let peers = self.peers();
        // Without memory's size the place of 64-bit BARs is taken for all above 4 GiB.
        let memory = self.wishes.memory.unwrap_or(GuestMemory {
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

    /// Guest memory must not be where requests of a device do not get to the IOMMU. Of root ports that is not always known.
    fn memory_holes(&self) -> Result<Vec<MemoryHole>, Vec<Limit>> {
        let Some(memory) = self.wishes.memory else {
            let any = self.facts().any(|(_, facts)| !facts.holes.is_empty());
            return if any {
                Err(vec![Limit::UnknownMemory])
            } else {
                Ok(Vec::new())
            };
        };
        let mut limits = Vec::new();
        let mut doubtful: Vec<MemoryHole> = Vec::new();
        for (_, facts) in self.facts() {
            for ram in memory.ranges() {
                let certain = facts.holes.iter().filter(|hole| hole.certain);
                limits.extend(MemoryHole::worst(certain, &ram).map(|hole| Limit::Memory {
                    device: facts.sbdf,
                    hole: hole.clone(),
                }));
                let hit = |hole: &&MemoryHole| overlap(&ram, &hole.range).is_some();
                doubtful.extend(facts.holes.iter().filter(hit).cloned());
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
#[path = "rules/tests.rs"]
mod tests;
