//! Ports that block forged requests: those with the requester ID of another function, and those that are marked as
//! translated although the IOMMU has not translated the address.

use super::model::RoutingModel;
use crate::Sbdf;
use crate::config::AcsBits;
use crate::topology::FunctionId;

impl RoutingModel<'_> {
    /// The first port above `from` that blocks requests of `from` with the requester ID of `other`: source validation
    /// is set, and the bus of `other` is not among the buses below the port (PCIe r6.0 §6.12.1.1).
    ///
    /// Without such a port the IOMMU uses the mappings of `other` for these requests: `from` reaches what is mapped for
    /// `other`, whatever groups the two are in. A port does not distinguish functions on buses below it.
    #[must_use]
    pub fn validating_port(&self, from: Sbdf, other: Sbdf) -> Option<Sbdf> {
        self.first_port(from, |port| {
            let below = self.function(port).and_then(|function| {
                let buses = function.secondary_bus()?..=function.subordinate_bus()?;
                Some((function.sbdf().domain(), buses))
            });
            let is_below = below.is_some_and(|(domain, buses)| {
                domain == other.domain() && buses.contains(&other.bus())
            });
            self.ingress(port).has(AcsBits::SV) && !is_below
        })
    }

    /// The first port above `from` that blocks translated requests: translation blocking is set (PCIe r6.0 §6.12.1.1).
    ///
    /// Without such a port a function whose ATS is enabled reaches all memory and every BAR behind the root complex if
    /// it marks requests as translated: the IOMMU does not check their addresses.
    #[must_use]
    pub fn translation_blocking_port(&self, from: Sbdf) -> Option<Sbdf> {
        self.first_port(from, |port| self.ingress(port).blocks_translated())
    }

    /// The first downstream or root port above a function that satisfies a condition.
    fn first_port(&self, from: Sbdf, is_it: impl Fn(FunctionId) -> bool) -> Option<Sbdf> {
        let chain = self.chain(self.find(from)?);
        let mut ports = chain.into_iter().skip(1);
        let found = ports.find(|port| self.port_type(*port).is_downstream() && is_it(*port));
        found.map(|port| self.sbdf(port))
    }
}
