//! Behaviour of the running kernel for ACS and groups: the rules of its version and its parameters.

mod acs_setup;
mod device_match;
mod parameters;
mod rules;

pub(crate) use acs_setup::AcsSubject;
pub use parameters::{AcsOverride, Parameters};
pub use rules::Rules;

use crate::{Host, Iommu, Topology};

/// The properties of a kernel that groups and routes depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The rules of the kernel version.
    pub rules: Rules,
    /// The kernel parameters.
    pub parameters: Parameters,
    /// Whether the kernel enables ACS. It does if it finds an IOMMU that it may use (linux 7.2 drivers/pci/pci.c:
    /// `pci_request_acs()`).
    pub requests_acs: bool,
    /// Whether firmware describes an AMD IOMMU (ACPI table IVRS). Some isolation quirks depend on it.
    pub has_ivrs: bool,
}

impl Kernel {
    /// The kernel under which a topology was read. Unknown facts default to a current kernel with an IOMMU.
    #[must_use]
    pub fn of(topology: &Topology) -> Self {
        let host = topology.host();
        Self {
            requests_acs: host.iommu != Iommu::None || topology.has_groups(),
            ..Self::of_host(host)
        }
    }

    fn of_host(host: &Host) -> Self {
        Self {
            rules: host
                .kernel_release
                .as_deref()
                .map_or(Rules::default(), Rules::of_release),
            parameters: Parameters::parse(host.kernel_arguments.iter().map(String::as_str)),
            requests_acs: host.iommu != Iommu::None,
            has_ivrs: host.iommu == Iommu::Amd,
        }
    }
}

impl Default for Kernel {
    /// A current kernel without parameters, on a host with an IOMMU that is not AMD's.
    fn default() -> Self {
        Self::of_host(&Host::default())
    }
}
