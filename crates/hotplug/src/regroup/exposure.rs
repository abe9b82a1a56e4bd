//! Exposures: devices of virtual machines that reach other functions without the IOMMU, or are reached by them.

use std::collections::{BTreeMap, BTreeSet};

use iommu_group::assignment::{self, Exposed};
use iommu_group::policy::Consent;
use iommu_group::{Groups, RoutingModel, Sbdf};

use super::vmm::VmDevice;

/// An exposure of a virtual machine's devices that must be accepted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestExposure {
    /// Name of the virtual machine.
    pub vm: String,
    /// The exposure, and whether it is accepted, by a device's configuration or by the caller.
    pub exposed: Exposed,
}

/// The exposures of all virtual machines that must be accepted by name. `assigned` are all devices of virtual machines;
/// `accepted` are functions whose exposure is accepted in addition to the devices' own [`expose`](VmDevice::expose).
#[must_use]
pub fn exposures(
    routing: &RoutingModel<'_>,
    groups: &Groups,
    assigned: &[VmDevice],
    accepted: &BTreeSet<Sbdf>,
) -> Vec<GuestExposure> {
    let mut guests: BTreeMap<&str, Vec<&VmDevice>> = BTreeMap::new();
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
