//! The IOMMU contexts of a VM: one for each P2P domain, and one for the unshared devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_group::assignment::{ContextKind, DomainName};
use iommu_group::{Address, AddressRange, Gpa, Iova, Placement, Sbdf};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::context::IommuContext;
use crate::device::Clique;
use crate::host_iommu::{Choice, HostIommu};

use super::{DeviceSetError, IommuOptions};

/// An IOMMU context, with the properties of its domain in the guest.
pub(super) struct Domain {
    pub(super) context: IommuContext,
    /// The clique that NVIDIA's driver in the guest reads; `None` for unshared devices.
    pub(super) clique: Option<Clique>,
    number: Option<usize>,
    /// Where the members' BARs are in the guest.
    pub(super) placement: Placement,
}

/// All contexts, by domain; `None` is the key of the unshared devices.
pub(super) struct Contexts {
    options: IommuOptions,
    /// The host IOMMU interface of all contexts, for the lifetime of the VM; `None` before the first device.
    iommu: Option<Arc<HostIommu>>,
    pub(super) domains: BTreeMap<Option<DomainName>, Domain>,
}

impl Contexts {
    /// No contexts.
    pub(super) fn new(options: IommuOptions) -> Self {
        Self {
            options,
            iommu: None,
            domains: BTreeMap::new(),
        }
    }

    /// Whether devices may be added later.
    pub(super) fn hotplug(&self) -> bool {
        self.options.hotplug
    }

    /// The kernel interface for the devices, and why it was chosen; `None` before the first device.
    pub(super) fn choice(&self) -> Option<&Choice> {
        self.iommu.as_ref().map(|iommu| iommu.choice())
    }

    /// Chooses the interface for the first devices of the VM: iommufd if it supports all of them, otherwise their
    /// VFIO groups.
    fn choose(
        &mut self,
        devices: &[(Sbdf, ContextKind)],
    ) -> Result<Arc<HostIommu>, DeviceSetError> {
        if let Some(iommu) = &self.iommu {
            return Ok(Arc::clone(iommu));
        }
        let IommuOptions {
            interface,
            kvm,
            preopened,
            ..
        } = &self.options;
        let kvm = kvm.as_deref().map(kvm_vfio_device).transpose()?;
        let iommu = HostIommu::choose(*interface, devices, kvm, preopened);
        let iommu = Arc::new(iommu.map_err(DeviceSetError::Interface)?);
        log::info!("devices are assigned by {}", iommu.choice());
        self.iommu = Some(Arc::clone(&iommu));
        Ok(iommu)
    }

    /// Creates the context of a domain that has none. The caller inserts it when it has a device. `added` are all
    /// devices that are about to be opened, in this context or another.
    pub(super) fn create(
        &mut self,
        name: Option<&DomainName>,
        added: &[(Sbdf, ContextKind)],
    ) -> Result<Domain, DeviceSetError> {
        let iommu = self.choose(added)?;
        let kind = match name {
            Some(_) => ContextKind::P2p,
            None => ContextKind::Isolated,
        };
        let used: Vec<_> = self.domains.values().filter_map(|d| d.number).collect();
        let number = name.and_then(|_| (0..).find(|number| !used.contains(number)));
        let context = IommuContext::new(&iommu, kind);
        Ok(Domain {
            context: context?,
            clique: number.and_then(Clique::of_domain),
            number,
            placement: Placement::Anywhere,
        })
    }

    /// The I/O addresses that every device can use; `None` without devices, when there is no limit.
    pub(super) fn iova_ranges(&self) -> Result<Option<Vec<AddressRange<Iova>>>, DeviceSetError> {
        let mut usable: Option<Vec<AddressRange<Iova>>> = None;
        for domain in self.domains.values() {
            let ranges = domain.context.iova_ranges()?;
            usable = Some(match usable {
                None => ranges,
                Some(so_far) => so_far
                    .iter()
                    .flat_map(|a| ranges.iter().filter_map(|b| a.intersect(b)))
                    .collect(),
            });
        }
        Ok(usable)
    }
}

/// Creates the KVM-VFIO device, which tells KVM the VFIO groups of the VM (linux
/// Documentation/virt/kvm/devices/vfio.rst). It stays for the lifetime of the VM.
fn kvm_vfio_device(vm: &VmFd) -> Result<Arc<DeviceFd>, DeviceSetError> {
    let mut request = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        fd: 0,
        flags: 0,
    };
    let device = vm.create_device(&mut request);
    device.map(Arc::new).map_err(DeviceSetError::KvmVfio)
}

/// Whether every byte of a range can be translated.
pub(super) fn within(range: &AddressRange<Gpa>, ranges: &[AddressRange<Iova>]) -> bool {
    let Some(range) = AddressRange::new(Iova::of_guest(range.start()), range.len_bytes()) else {
        return true;
    };
    ranges.iter().any(|usable| usable.contains(&range))
}

/// The gaps between the ranges, and the end of the last range.
pub(super) fn gaps(ranges: &[AddressRange<Iova>]) -> (Vec<AddressRange<Gpa>>, u64) {
    let mut holes = Vec::new();
    let mut end = 0;
    for range in ranges {
        let start = range.start().value();
        if let Some(hole) = start
            .checked_sub(end)
            .and_then(|len| AddressRange::new(Gpa::new(end), len))
        {
            holes.push(hole);
        }
        end = end.max(range.end().value());
    }
    (holes, end)
}
