//! IOMMU contexts of a VM: guest memory in each, a BAR only in its own P2P domain's.

use std::fmt;
use std::io;
use std::sync::Arc;

use iommu_group::{GroupId, Sbdf};
use kvm_ioctls::DeviceFd;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use crate::address::{AddressRange, Iova};
use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;
use crate::sys::{Type1, VfioPci};

/// Why a device could not join an IOMMU context. The context is as it was before.
#[derive(Debug, Error)]
pub enum ContextError {
    /// No VFIO container.
    #[error(
        "cannot open a VFIO container: {0} (is vfio_iommu_type1 loaded, and may you open /dev/vfio/vfio?)"
    )]
    Container(io::Error),
    /// The group or the device could not be opened.
    #[error("cannot open {sbdf} of IOMMU group {group} through VFIO: {error}")]
    Open {
        /// The device.
        sbdf: Sbdf,
        /// Its group.
        group: GroupId,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel does not tell which I/O addresses can be used.
    #[error("cannot tell which I/O addresses the IOMMU can translate: {0}")]
    Ranges(io::Error),
    /// Guest memory could not be mapped for the devices.
    #[error("cannot give devices access to guest memory: {0}")]
    GuestMemory(#[source] DmaError),
}

/// What the devices of a context may reach besides guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Guest memory alone.
    GuestMemory,
    /// Guest memory and each other's BARs: the context of a P2P domain.
    Peers,
}

/// One IOMMU context: all its devices see the same translation, which the IOMMU enforces.
///
/// Devices are opened in it first, because only then does the kernel know which I/O addresses the
/// IOMMU can translate; guest memory is laid out accordingly and given to the context after.
pub struct IommuContext {
    reach: Reach,
    container: Arc<Type1>,
}

impl IommuContext {
    /// A context without devices. `kvm` is the VM's KVM-VFIO device.
    ///
    /// # Errors
    /// [`ContextError::Container`].
    pub fn new(reach: Reach, kvm: Option<Arc<DeviceFd>>) -> Result<Self, ContextError> {
        let container = Type1::new(kvm).map_err(ContextError::Container)?;
        Ok(Self {
            reach,
            container: Arc::new(container),
        })
    }

    /// Opens a device in this context; it may use what is mapped here.
    pub(crate) fn open(&self, sbdf: Sbdf, group: GroupId) -> Result<VfioPci, ContextError> {
        VfioPci::open(self.container.clone(), group, sbdf).map_err(|error| ContextError::Open {
            sbdf,
            group,
            error,
        })
    }

    /// The I/O addresses that devices of this context can use, ascending. It has a device by now.
    ///
    /// # Errors
    /// [`ContextError::Ranges`].
    pub fn iova_ranges(&self) -> Result<Vec<AddressRange<Iova>>, ContextError> {
        self.container.iova_ranges().map_err(ContextError::Ranges)
    }

    /// The window table for BARs: only a P2P domain has one.
    pub(crate) fn peer_windows(&self) -> Option<Arc<dyn DmaBackend>> {
        match self.reach {
            Reach::GuestMemory => None,
            Reach::Peers => Some(self.container.clone()),
        }
    }

    /// Gives the devices access to all of `memory`, at I/O addresses equal to the guest's.
    ///
    /// # Errors
    /// [`ContextError::GuestMemory`]; nothing is mapped then.
    pub fn map_guest<B>(&self, memory: &GuestMemoryMmap<B>) -> Result<(), ContextError>
    where
        B: Bitmap + fmt::Debug + Send + Sync + 'static,
    {
        let mut done = Vec::new();
        for (gpa, memory) in HostMemory::of_guest(memory) {
            match self.container.map(Iova::of_guest(gpa), memory) {
                Ok(range) => done.push(range),
                Err(error) => {
                    for range in done {
                        if let Err(undo) = self.container.unmap(range) {
                            log::error!("while undoing: {undo}");
                        }
                    }
                    return Err(ContextError::GuestMemory(error));
                }
            }
        }
        Ok(())
    }
}
