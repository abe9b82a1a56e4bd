//! IOMMU contexts of a VM: guest memory in each, a BAR only in its own P2P domain's.

use std::fmt;
use std::io;
use std::sync::Arc;

use iommu_group::assignment::ContextKind;
use iommu_group::{AddressRange, GroupId, Iova, Sbdf};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use crate::dma::{DmaBackend, DmaError};
use crate::host_iommu::{HostIommu, IommufdError};
use crate::memory::HostMemory;
use crate::peers::PeerBars;
use crate::sys::{Ioas, Type1, VfioPci};

/// Why a device could not join an IOMMU context. The context is as it was before.
#[derive(Debug, Error)]
pub enum ContextError {
    /// No VFIO container.
    #[error(
        "cannot open a VFIO container: {0} (is vfio_iommu_type1 loaded, and may you open /dev/vfio/vfio?)"
    )]
    Container(io::Error),
    /// No I/O address space.
    #[error("cannot make an I/O address space of iommufd: {0}")]
    AddressSpace(io::Error),
    /// The device does not go with iommufd, which the VM has.
    #[error("{0}, which the other devices of the VM are assigned by")]
    IommufdError(#[from] IommufdError),
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

/// One IOMMU context: all its devices see the same translation, which the IOMMU enforces.
///
/// Devices are opened in it first, because only then does the kernel know which I/O addresses the
/// IOMMU can translate; guest memory is laid out accordingly and given to the context after.
pub struct IommuContext {
    kind: ContextKind,
    iommu: Arc<HostIommu>,
    backend: Backend,
    /// The BARs that the members of a P2P domain can reach.
    peers: Option<Arc<PeerBars>>,
}

/// The kernel's object for a context.
enum Backend {
    Type1(Arc<Type1>),
    Iommufd(Arc<Ioas>),
}

impl Backend {
    fn dma(&self) -> Arc<dyn DmaBackend> {
        match self {
            Self::Type1(container) => container.clone(),
            Self::Iommufd(ioas) => ioas.clone(),
        }
    }
}

impl IommuContext {
    /// A context without devices.
    ///
    /// # Errors
    /// [`ContextError::Container`], [`ContextError::AddressSpace`].
    pub fn new(iommu: &Arc<HostIommu>, kind: ContextKind) -> Result<Self, ContextError> {
        let backend = if let Some(iommufd) = iommu.iommufd() {
            let ioas = Ioas::new(iommufd.clone()).map_err(ContextError::AddressSpace)?;
            Backend::Iommufd(Arc::new(ioas))
        } else {
            let container = Type1::new(iommu.kvm()).map_err(ContextError::Container)?;
            Backend::Type1(Arc::new(container))
        };
        let peers = (kind == ContextKind::P2p).then(|| Arc::new(PeerBars::new(backend.dma())));
        Ok(Self {
            kind,
            iommu: Arc::clone(iommu),
            backend,
            peers,
        })
    }

    /// Opens a device in this context; it may use what is mapped here.
    pub(crate) fn open(&self, sbdf: Sbdf, group: GroupId) -> Result<VfioPci, ContextError> {
        let opened = match &self.backend {
            Backend::Type1(container) => {
                self.iommu.excludes(sbdf)?;
                VfioPci::open(container.clone(), group, sbdf)
            }
            Backend::Iommufd(ioas) => {
                let device = self.iommu.take(sbdf, self.kind)?;
                VfioPci::attach(ioas.clone(), device, self.kind == ContextKind::P2p)
            }
        };
        let opened = opened.map_err(|error| ContextError::Open { sbdf, group, error })?;
        if let Some(peers) = &self.peers {
            peers.set_usable(self.iova_ranges()?);
        }
        Ok(opened)
    }

    /// The I/O addresses that devices of this context can use, ascending. It has a device by now.
    ///
    /// # Errors
    /// [`ContextError::Ranges`].
    pub fn iova_ranges(&self) -> Result<Vec<AddressRange<Iova>>, ContextError> {
        let ranges = match &self.backend {
            Backend::Type1(container) => container.iova_ranges(),
            Backend::Iommufd(ioas) => ioas.iova_ranges(),
        };
        ranges.map_err(ContextError::Ranges)
    }

    /// The table of the members' BARs: only a P2P domain has one.
    pub(crate) fn peer_bars(&self) -> Option<Arc<PeerBars>> {
        self.peers.clone()
    }

    /// What the kernel lets the devices of this context reach.
    #[cfg(feature = "contract")]
    pub(crate) fn dma(&self) -> Arc<dyn DmaBackend> {
        self.backend.dma()
    }

    /// Gives the devices access to all of `memory`, at I/O addresses equal to the guest's.
    ///
    /// # Errors
    /// [`ContextError::GuestMemory`]; nothing is mapped then.
    pub fn map_guest<B>(&self, memory: &GuestMemoryMmap<B>) -> Result<(), ContextError>
    where
        B: Bitmap + fmt::Debug + Send + Sync + 'static,
    {
        let dma = self.backend.dma();
        let mut done = Vec::new();
        for (gpa, memory) in HostMemory::of_guest(memory) {
            match dma.map(Iova::of_guest(gpa), memory) {
                Ok(range) => done.push(range),
                Err(error) => {
                    for range in done {
                        if let Err(undo) = dma.unmap(range) {
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
