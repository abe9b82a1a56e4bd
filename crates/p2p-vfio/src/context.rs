//! IOMMU contexts of a VM: guest memory in each, a BAR only in its own P2P domain's.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vfio_ioctls::VfioDeviceFd;
use vm_memory::GuestMemoryMmap;

use crate::address::Iova;
use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;
use crate::sys::{Type1Container, VfioPci};

/// Why a device could not join an IOMMU context. The context is as it was before.
#[derive(Debug, Error)]
pub enum ContextError {
    /// No VFIO container.
    #[error(
        "cannot open a VFIO container: {0} (is vfio_iommu_type1 loaded, and may you open /dev/vfio/vfio?)"
    )]
    Container(io::Error),
    /// The group or the device could not be opened.
    #[error("cannot open {} through VFIO: {error}", device.display())]
    Open {
        /// Directory of the device in sysfs.
        device: std::path::PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
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
pub struct IommuContext {
    reach: Reach,
    container: Arc<Type1Container>,
    guest: GuestMemoryMmap,
    /// Whether guest memory is mapped: it can be only once the first group has joined.
    populated: Mutex<bool>,
}

impl IommuContext {
    /// A context without devices. `kvm` is the VM's KVM-VFIO device.
    ///
    /// # Errors
    /// [`ContextError::Container`].
    pub fn new(
        reach: Reach,
        guest: GuestMemoryMmap,
        kvm: Option<Arc<VfioDeviceFd>>,
    ) -> Result<Self, ContextError> {
        let container = Type1Container::new(kvm).map_err(ContextError::Container)?;
        Ok(Self {
            reach,
            container: Arc::new(container),
            guest,
            populated: Mutex::new(false),
        })
    }

    /// Opens a device in this context, which gives it access to guest memory.
    pub(crate) fn open(&self, sysfs: &Path) -> Result<VfioPci, ContextError> {
        let mut populated = self
            .populated
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let device =
            VfioPci::open(self.container.clone(), sysfs).map_err(|error| ContextError::Open {
                device: sysfs.to_owned(),
                error,
            })?;
        if !*populated {
            self.map_guest().map_err(ContextError::GuestMemory)?;
            *populated = true;
        }
        Ok(device)
    }

    /// The window table for BARs: only a P2P domain has one.
    pub(crate) fn peer_windows(&self) -> Option<Arc<dyn DmaBackend>> {
        match self.reach {
            Reach::GuestMemory => None,
            Reach::Peers => Some(self.container.clone()),
        }
    }

    /// Maps all guest memory, or nothing.
    fn map_guest(&self) -> Result<(), DmaError> {
        let mut done = Vec::new();
        for (gpa, memory) in HostMemory::of_guest(&self.guest) {
            match self.container.map(Iova::of_guest(gpa), memory) {
                Ok(range) => done.push(range),
                Err(error) => {
                    for range in done {
                        if let Err(undo) = self.container.unmap(range) {
                            log::error!("while undoing: {undo}");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
