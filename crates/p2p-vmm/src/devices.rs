//! The assigned devices of a VM as the API sees them: their names, their lifecycle, and their events. The devices
//! themselves are a [`DeviceSet`](p2p_vfio::DeviceSet).

mod add;
#[cfg(test)]
mod empty;
mod limit;
mod registry;
mod release;
mod request;

pub(crate) use add::AddContext;
#[cfg(test)]
pub(crate) use empty::empty_set;
pub(crate) use limit::address_limit;
pub(crate) use registry::{Devices, RemoveError, RemoveOptions};
pub(crate) use request::{accepted, domain_of, iommu_options, plan_devices};
