//! IOMMU contexts of a VM. Guest memory is mapped in each; a BAR only in the context of its own P2P domain.

use std::io;
use std::sync::Arc;

use iommu_group::assignment::ContextKind;
use iommu_group::{AddressRange, Gpa, GroupId, Iova, Sbdf};
use thiserror::Error;

use crate::dma::{DmaBackend, DmaError};
use crate::host_iommu::{HostIommu, IommufdError};
use crate::memory::HostMemory;
use crate::peers::PeerBars;
use crate::sys::{Ioas, Type1, VfioPci};

/// The device could not join an IOMMU context. The context is unchanged.
#[derive(Debug, Error)]
pub enum ContextError {
    /// A VFIO container could not be opened.
    #[error(
        "cannot open a VFIO container: {0} (is vfio_iommu_type1 loaded, and may you open /dev/vfio/vfio?)"
    )]
    Container(io::Error),
    /// An I/O address space could not be created.
    #[error("cannot make an I/O address space of iommufd: {0}")]
    AddressSpace(io::Error),
    /// The device cannot be used through the kernel interface of the VM.
    #[error("{0}, which the other devices of the VM are assigned by")]
    IommufdError(#[from] IommufdError),
    /// The group or the device could not be opened.
    #[error("cannot open {sbdf} of IOMMU group {group} through VFIO: {error}")]
    Open {
        /// The device.
        sbdf: Sbdf,
        /// Its group.
        group: GroupId,
        /// The kernel's error.
        error: io::Error,
    },
    /// The kernel does not report the usable I/O addresses.
    #[error("cannot tell which I/O addresses the IOMMU can translate: {0}")]
    Ranges(io::Error),
    /// Guest memory could not be mapped for the devices.
    #[error("cannot give devices access to guest memory: {0}")]
    GuestMemory(#[source] DmaError),
}

/// One IOMMU context: all its devices share one translation, which the IOMMU enforces.
///
/// Open the devices first: only then does the kernel know which I/O addresses the IOMMU can translate. Lay out guest
/// memory inside these ranges and map it in the context afterwards.
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
    /// Creates a context without devices.
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

    /// Opens a device in this context; the device can use all mappings of the context.
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

    /// I/O address ranges that devices of this context can use, ascending. Call it when the context has a device.
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

    /// The table of the members' BARs; `None` outside of a P2P domain.
    pub(crate) fn peer_bars(&self) -> Option<Arc<PeerBars>> {
        self.peers.clone()
    }

    /// The DMA mappings of this context.
    #[cfg(feature = "conformance")]
    pub(crate) fn dma(&self) -> Arc<dyn DmaBackend> {
        self.backend.dma()
    }

    /// Maps regions of guest memory for the devices, at I/O addresses equal to the guest-physical ones.
    ///
    /// # Errors
    /// [`ContextError::GuestMemory`]; nothing is mapped then.
    pub fn map_guest(&self, memory: &[(Gpa, HostMemory)]) -> Result<(), ContextError> {
        let dma = self.backend.dma();
        let mut done = Vec::new();
        for (gpa, memory) in memory {
            match dma.map(Iova::of_guest(*gpa), memory.clone()) {
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

    /// Unmaps regions of guest memory that were mapped with the same bounds. A region that is not mapped is ignored.
    ///
    /// # Errors
    /// [`ContextError::GuestMemory`] names the first region that is still mapped; the others are unmapped.
    pub fn unmap_guest(&self, memory: &[(Gpa, HostMemory)]) -> Result<(), ContextError> {
        let dma = self.backend.dma();
        let mut result = Ok(());
        for (gpa, memory) in memory {
            let len_bytes = u64::try_from(memory.len_bytes()).unwrap_or(u64::MAX);
            let Some(range) = AddressRange::new(Iova::of_guest(*gpa), len_bytes) else {
                continue;
            };
            match dma.unmap(range) {
                Ok(()) | Err(DmaError::NotMapped(_)) => {}
                Err(error) => result = result.and(Err(ContextError::GuestMemory(error))),
            }
        }
        result
    }
}
