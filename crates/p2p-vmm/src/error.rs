//! The error of a request, typed from the check to the exit status and the HTTP status.

use iommu_group::SysfsError;
use p2p_vfio::{DeviceSetError, IommufdError, PreopenedError};
use thiserror::Error;
use vmm_api::{ConfigError, Failure};

use crate::devices::RemoveError;
use crate::layout::LayoutError;

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub(crate) enum VmmError {
    /// The VM cannot have the devices as requested.
    #[error(transparent)]
    Devices(#[from] DeviceSetError),
    /// A path is not a PCI function of the host, or no IOMMU guards it.
    #[error(transparent)]
    Host(#[from] SysfsError),
    /// The guest's address space has no room for what memory and devices need.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A descriptor cannot be used.
    #[error(transparent)]
    Descriptor(#[from] PreopenedError),
    /// A descriptor that an option names cannot be used.
    #[error("{option}")]
    Option {
        /// The option.
        option: String,
        /// Why not.
        source: PreopenedError,
    },
    /// A call does not fit the VM's state or description.
    #[error(transparent)]
    Call(#[from] Failure),
    /// A device cannot be removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// Something else was tried and failed.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl VmmError {
    /// A failure that is no refusal, for `map_err`.
    pub(crate) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::Failed(error.into())
    }

    /// Whether the request was refused before anything was changed.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Devices(error) => matches!(
                error,
                DeviceSetError::Refused(_) | DeviceSetError::Host(_) | DeviceSetError::Interface(_)
            ),
            Self::Host(_) | Self::Layout(_) | Self::Descriptor(_) | Self::Option { .. } => true,
            Self::Call(_) | Self::Remove(_) | Self::Failed(_) => false,
        }
    }

    /// The user's next step, if the text does not say it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Host(SysfsError::NoGroup { .. })
            | Self::Devices(DeviceSetError::Host(SysfsError::NoGroup { .. })) => Some(
                "an IOMMU is needed: intel_iommu=on or amd_iommu=on, and VT-d or AMD-Vi in the firmware",
            ),
            Self::Host(_) | Self::Devices(DeviceSetError::Host(_)) => Some(
                "give the directory of a PCI function, path=/sys/bus/pci/devices/0000:03:00.0 (lspci -D lists them)",
            ),
            Self::Devices(DeviceSetError::Interface(IommufdError::Excluded { .. })) => {
                Some("remove iommufd=off, or give the device's path")
            }
            Self::Devices(DeviceSetError::Interface(_)) => {
                Some("without --platform iommufd=on the devices are assigned by type1")
            }
            Self::Descriptor(error) | Self::Option { source: error, .. } => Some(example_of(error)),
            Self::Devices(_)
            | Self::Layout(_)
            | Self::Call(_)
            | Self::Remove(_)
            | Self::Failed(_) => None,
        }
    }
}

impl From<ConfigError> for VmmError {
    fn from(error: ConfigError) -> Self {
        Self::failed(error)
    }
}

/// An example of a descriptor that can be used.
fn example_of(error: &PreopenedError) -> &'static str {
    match error {
        PreopenedError::IommufdError(_) => {
            "pass a descriptor that is open for reading and writing: --platform iommufd_fd=4 4<>/dev/iommu"
        }
        _ => {
            "pass a descriptor that is open for reading and writing: --device fd=5 5<>/dev/vfio/devices/vfio0"
        }
    }
}
