//! Prediction of the kernel's `pci_p2pdma` for a pair of functions.

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
    /// By its bus address, without the IOMMU.
    BusAddress,
    /// Through the host bridge, like host memory.
    ThroughHostBridge,
    /// `pci_p2pdma` does not support the pair.
    NotSupported,
}

/// The result of `pci_p2pdma` for a pair. It applies to drivers of the host kernel, not to passed-through devices of a
/// virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct P2pDma {
    /// The type of the mapping.
    pub mapping: P2pMapping,
    /// Number of steps between the two functions across the bridges between them.
    pub distance: u32,
    /// The functions whose ACS redirects, as the kernel counts them. Endpoints and the common bridge are included.
    pub redirecting: Vec<Sbdf>,
    /// Whether the kernel trusts all root complexes of this kind of CPU.
    pub cpu_supports: bool,
    /// Whether the root complexes are on the kernel's list.
    pub host_bridge_listed: bool,
}

impl RoutingModel<'_> {
    /// Predicts the result of `pci_p2pdma` for memory of `provider` and DMA by `client`. Returns `None` if one of them
    /// is not present, or if the ACS of a function that counts could not be read (linux 7.2 drivers/pci/p2pdma.c:
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

    /// Whether the word at offset 6 of the ACS capability has a bit that redirects. In Intel's ports with doubleword
    /// registers this is not the control register, but the kernel reads it nevertheless.
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
            function.space().u16(at).map(AcsBits::from_bits_retain)
        } else {
            self.control(id)
        };
        word.is_some_and(|word| word.intersects(AcsBits::REDIRECT))
    }
}
