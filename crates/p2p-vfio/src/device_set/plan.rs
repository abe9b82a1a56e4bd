//! The plan of a set: the checked devices, and what they need of the guest. Nothing is opened or changed.

use std::collections::{BTreeMap, BTreeSet};

use guest_topology::{Demands, Endpoint, Reserve, Subtree};
use iommu_group::assignment::{
    Assignment, AssignmentRequest, DeviceInfo, HostSnapshot, check_assignment,
};
use iommu_group::{Sbdf, Sysfs};

use super::{DeviceRequest, DeviceSet, DeviceSetError};

/// Devices that a VM may have.
pub struct DevicePlan {
    pub(super) assignment: Assignment,
    pub(super) requests: BTreeMap<Sbdf, DeviceRequest>,
    pub(super) host: HostSnapshot,
}

impl DeviceSet {
    /// Checks the devices of a VM against a snapshot of the host and its policy.
    ///
    /// # Errors
    /// [`DeviceSetError::Host`] if a path is not a PCI function with an IOMMU group; [`DeviceSetError::Present`] if two
    /// requests have one tag; [`DeviceSetError::Refused`] with all reasons if the VM may not have the devices.
    pub fn plan(
        host: HostSnapshot,
        requests: &[DeviceRequest],
    ) -> Result<DevicePlan, DeviceSetError> {
        let (assignment, requests) = check(&host, requests, None)?;
        Ok(DevicePlan {
            assignment,
            requests,
            host,
        })
    }
}

/// Checks all devices of a VM. `departed` is given if the last one is added to a VM that has the others: the functions
/// that the VM had before. Returns the request of each function too.
pub(super) fn check(
    host: &HostSnapshot,
    requests: &[DeviceRequest],
    departed: Option<&BTreeSet<Sbdf>>,
) -> Result<(Assignment, BTreeMap<Sbdf, DeviceRequest>), DeviceSetError> {
    let sysfs = Sysfs::default();
    let mut known = BTreeMap::new();
    let mut tags = BTreeSet::new();
    let mut expose = BTreeSet::new();
    let mut devices = Vec::new();
    for request in requests {
        if !tags.insert(&request.tag) {
            return Err(DeviceSetError::Present(request.tag.clone()));
        }
        expose.extend(&request.expose);
        let device = DeviceInfo::read(host, &sysfs, &request.path, request.domain.clone())?;
        known.entry(device.sbdf).or_insert_with(|| request.clone());
        devices.push(device);
    }
    let request = AssignmentRequest {
        devices,
        others: &BTreeSet::new(),
        expose: &expose,
        departed,
    };
    let assignment = check_assignment(host, request)?;
    if let Some(accepted) = &assignment.unsafe_interrupts {
        log::warn!("{accepted}");
    }
    Ok((assignment, known))
}

impl DevicePlan {
    /// The checked devices, by IOMMU context, and their exposures.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// What the devices need of the guest's address space, without room for devices that are added later. Devices whose
    /// VFIO driver changes their BARs may need more; [`OpenDevices`](super::OpenDevices) knows.
    ///
    /// # Errors
    /// [`DeviceSetError::Endpoint`] if a function cannot be an endpoint; [`DeviceSetError::NoRoom`] if no root bus has
    /// room for the devices.
    pub fn demands(&self) -> Result<Demands, DeviceSetError> {
        let endpoint = |device: &DeviceInfo| -> Result<Endpoint, DeviceSetError> {
            let endpoint = Endpoint::of_function(self.host.topology(), device.sbdf)?;
            Ok(endpoint.placed(device.placement))
        };
        let mut subtrees = Vec::new();
        for members in &self.assignment.domains {
            subtrees.push(Subtree::Switch {
                members: members.iter().map(endpoint).collect::<Result<_, _>>()?,
                reserve: Reserve::default(),
            });
        }
        for device in &self.assignment.unshared {
            subtrees.push(Subtree::Endpoint(endpoint(device)?));
        }
        let holes = self.assignment.devices().flat_map(|device| &device.holes);
        Ok(Demands::new(&subtrees, holes)?)
    }
}
