//! What the kernel's own peer-to-peer code thinks of a pair.

use serde::Serialize;

use super::model::RoutingModel;
use super::root_complex;
use crate::Sbdf;
use crate::config::{Acs, AcsBits};
use crate::topology::FunctionId;

/// How `pci_p2pdma` would map the memory of a provider for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum P2pMapping {
    /// By its bus address, past the IOMMU.
    BusAddress,
    /// Through the host bridge, like host memory.
    ThroughHostBridge,
    /// Not at all.
    NotSupported,
}

/// What `pci_p2pdma` thinks of a pair. It decides for drivers of this kernel, not for what a virtual machine does
/// with passed-through devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct P2pDma {
    /// How it would map.
    pub mapping: P2pMapping,
    /// Steps from one to the other over the bridges between them.
    pub distance: u32,
    /// The functions whose ACS redirects, as the kernel counts them: also endpoints, and also the common bridge.
    pub redirecting: Vec<Sbdf>,
    /// Whether the CPU is of a kind whose root complexes the kernel trusts.
    pub cpu_supports: bool,
    /// Whether the root complexes are on the kernel's list.
    pub host_bridge_listed: bool,
}

impl RoutingModel<'_> {
    /// What `pci_p2pdma` thinks of memory of `provider` for DMA by `client`; `None` if one of them is not there, or if
    /// the ACS of a function that counts could not be read (linux 7.2 drivers/pci/p2pdma.c:
    /// `calc_map_type_and_dist()`).
    #[must_use]
    pub fn p2pdma(&self, provider: Sbdf, client: Sbdf) -> Option<P2pDma> {
        let (provider, client) = (self.find(provider)?, self.find(client)?);
        let up = self.chain(provider);
        let down = self.chain(client);
        let common = up
            .iter()
            .enumerate()
            .find_map(|(steps, id)| Some((steps, down.iter().position(|other| other == id)?)));
        let (distance, counted): (usize, Vec<FunctionId>) = match common {
            // The common bridge counts once.
            Some((a, b)) => (
                a.saturating_add(b),
                up.iter()
                    .take(a.saturating_add(1))
                    .chain(down.iter().take(b))
                    .copied()
                    .collect(),
            ),
            None => (up.len().saturating_add(down.len()), up),
        };
        let hidden = |id: &FunctionId| {
            self.function(*id)
                .is_some_and(|function| matches!(function.acs(), Acs::Unknown(_)))
        };
        if counted.iter().any(hidden) {
            return None;
        }
        let redirecting: Vec<Sbdf> = counted
            .into_iter()
            .filter(|id| self.redirects(*id))
            .map(|id| self.sbdf(id))
            .collect();
        let cpu_supports = root_complex::cpu_routes(self.topology());
        let host_bridge_listed =
            root_complex::listed(self.topology(), self.kernel(), provider, client);
        let mapping = if common.is_some() && redirecting.is_empty() {
            P2pMapping::BusAddress
        } else if cpu_supports || host_bridge_listed {
            P2pMapping::ThroughHostBridge
        } else {
            P2pMapping::NotSupported
        };
        Some(P2pDma {
            mapping,
            distance: u32::try_from(distance).unwrap_or(u32::MAX),
            redirecting,
            cpu_supports,
            host_bridge_listed,
        })
    }

    /// Whether the word at offset 6 of the ACS capability has a bit that redirects. Of Intel's doubleword ports that
    /// is not the control register, but the kernel looks there all the same.
    fn redirects(&self, id: FunctionId) -> bool {
        let Some(function) = self.function(id) else {
            return false;
        };
        let Some(registers) = function.acs().registers() else {
            return false;
        };
        let word = if registers.dword_layout {
            let at = registers
                .offset
                .saturating_add(crate::config::spec::acs::CONTROL);
            function.space().u16(at).map(AcsBits::from_bits)
        } else {
            self.control(id)
        };
        word.is_some_and(|word| word.intersects(AcsBits::REDIRECT))
    }
}
