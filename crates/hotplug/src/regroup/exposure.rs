//! Devices of virtual machines that reach others without the IOMMU, or are reached so.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::assignment::{self, Exposed};
use iommu_group::policy::Consent;
use iommu_group::{Groups, RoutingModel, Sbdf};

use super::vmm::Assigned;

/// An exposure of a virtual machine's devices that has to be accepted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestExposure {
    /// Name of the virtual machine.
    pub vm: String,
    /// Who is reached by whom, and whether it is accepted: for one of the devices, or by the caller.
    pub exposed: Exposed,
}

/// The exposures of all virtual machines that have to be accepted by name. `assigned` are all their devices; `accepted`
/// are functions whose exposure is accepted besides those that the devices' own [`expose`](Assigned::expose) names.
#[must_use]
pub fn exposures(
    routing: &RoutingModel<'_>,
    groups: &Groups,
    assigned: &[Assigned],
    accepted: &BTreeSet<Sbdf>,
) -> Vec<GuestExposure> {
    let mut guests: BTreeMap<&str, Vec<&Assigned>> = BTreeMap::new();
    for device in assigned {
        guests.entry(&device.vm).or_default().push(device);
    }
    let mut found = Vec::new();
    for (vm, devices) in guests {
        let functions = devices.iter().map(|device| device.function).collect();
        let named: BTreeSet<&Sbdf> = devices.iter().flat_map(|device| &device.expose).collect();
        let consent = |function| {
            let is_accepted = named.contains(&function) || accepted.contains(&function);
            is_accepted.then_some(Consent::Named)
        };
        let exposures = assignment::exposures(routing, groups, &functions, consent);
        let certain = exposures.into_iter();
        let certain = certain.filter(|exposed| exposed.exposure.needs_consent());
        found.extend(certain.map(|exposed| GuestExposure {
            vm: vm.to_owned(),
            exposed,
        }));
    }
    found
}
