//! The kernel interface through which a VM uses its devices: iommufd if possible, otherwise VFIO containers.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use iommu_group::Sbdf;
use iommu_group::assignment::ContextKind;
use kvm_ioctls::DeviceFd;
use thiserror::Error;

use crate::preopened::PreopenedDevices;
use crate::sys::{Cdev, Iommufd, probe_dmabuf};

/// Kernel interface for IOMMU contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// VFIO containers with the type1 driver: BARs are mapped by their address in this process.
    Type1,
    /// iommufd: memory is pinned once for all contexts, and a BAR is a dma-buf that the kernel revokes.
    Iommufd,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type1 => "type1",
            Self::Iommufd => "iommufd",
        })
    }
}

/// A requirement of iommufd that the host or a device does not meet.
#[derive(Debug, Error)]
pub enum IommufdError {
    /// The kernel does not have iommufd, or it cannot be opened.
    #[error("/dev/iommu cannot be opened: {0}")]
    Kernel(io::Error),
    /// The device has no file of its own and can be opened only through its group.
    #[error("{sbdf} has no file in /dev/vfio/devices: {error}")]
    DeviceFile {
        /// The device.
        sbdf: Sbdf,
        /// The kernel's error.
        error: io::Error,
    },
    /// The device could not be bound to the iommufd.
    #[error("{sbdf} cannot be bound to iommufd: {error}")]
    Bind {
        /// The device.
        sbdf: Sbdf,
        /// The kernel's error.
        error: io::Error,
    },
    /// The operator chose type1, but the device was passed open, which requires iommufd.
    #[error("{sbdf} is handed in open, which takes iommufd, and the VM is to have type1")]
    Excluded {
        /// The device.
        sbdf: Sbdf,
    },
    /// Peers of the device could not reach it.
    #[error("peers of {sbdf} could not reach it: {why}")]
    Peers {
        /// The device.
        sbdf: Sbdf,
        /// What the kernel does not support.
        why: String,
    },
}

/// The interface of a VM and the reason for it.
#[derive(Debug)]
pub struct Choice {
    /// The interface.
    pub interface: Interface,
    /// Why it was chosen.
    pub reason: ChoiceReason,
}

/// Reason for the choice of an interface.
#[derive(Debug)]
pub enum ChoiceReason {
    /// The operator chose it.
    Asked,
    /// The kernel and all devices support iommufd.
    Possible,
    /// A requirement of iommufd is not met.
    Unsupported(IommufdError),
}

impl fmt::Display for ChoiceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("as asked for"),
            Self::Possible => f.write_str("which kernel and devices have all of"),
            Self::Unsupported(what) => write!(f, "because {what}"),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.interface, self.reason)
    }
}

/// The interface of one VM, and the state that its contexts share.
pub struct HostIommu {
    choice: Choice,
    way: Way,
    kvm: Option<Arc<DeviceFd>>,
    handed: Arc<PreopenedDevices>,
}

enum Way {
    Type1,
    Iommufd {
        // Closed before the iommufd to which they are bound.
        bound: Mutex<BTreeMap<Sbdf, Cdev>>,
        iommufd: Arc<Iommufd>,
    },
}

impl HostIommu {
    /// Chooses the interface. Tries to bind all `devices` to an iommufd and uses it if that succeeds; otherwise uses
    /// containers. `wanted` allows only that interface. Devices in `handed` require iommufd. `kvm` is the VM's KVM-VFIO
    /// device.
    ///
    /// # Errors
    /// [`IommufdError`] if iommufd is wanted or required and not possible, or if type1 is wanted and a device was
    /// passed open.
    pub fn choose(
        wanted: Option<Interface>,
        devices: &[(Sbdf, ContextKind)],
        kvm: Option<Arc<DeviceFd>>,
        handed: &Arc<PreopenedDevices>,
    ) -> Result<Self, IommufdError> {
        let open = devices.iter().find(|(sbdf, _)| handed.has(*sbdf));
        let wanted = match (wanted, open) {
            (Some(Interface::Type1), Some((sbdf, _))) => {
                return Err(IommufdError::Excluded { sbdf: *sbdf });
            }
            (None, Some(_)) => Some(Interface::Iommufd),
            (wanted, _) => wanted,
        };
        let binder = Binder {
            handed,
            kvm: kvm.as_ref(),
        };
        let found = match wanted {
            Some(Interface::Type1) => None,
            Some(Interface::Iommufd) | None => Some(Way::iommufd(devices, &binder)),
        };
        let (way, reason) = match (found, wanted) {
            (None, _) => (Way::Type1, ChoiceReason::Asked),
            (Some(Ok(way)), Some(_)) => (way, ChoiceReason::Asked),
            (Some(Ok(way)), None) => (way, ChoiceReason::Possible),
            (Some(Err(lack)), Some(_)) => return Err(lack),
            (Some(Err(lack)), None) => (Way::Type1, ChoiceReason::Unsupported(lack)),
        };
        let interface = match way {
            Way::Type1 => Interface::Type1,
            Way::Iommufd { .. } => Interface::Iommufd,
        };
        Ok(Self {
            choice: Choice { interface, reason },
            way,
            kvm,
            handed: Arc::clone(handed),
        })
    }

    /// The interface and the reason for it.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    pub(crate) fn kvm(&self) -> Option<Arc<DeviceFd>> {
        self.kvm.clone()
    }

    /// The iommufd; `None` with containers.
    pub(crate) fn iommufd(&self) -> Option<&Arc<Iommufd>> {
        match &self.way {
            Way::Type1 => None,
            Way::Iommufd { iommufd, .. } => Some(iommufd),
        }
    }

    /// A device that is bound to the iommufd: bound by `choose`, or now.
    pub(crate) fn take(&self, sbdf: Sbdf, kind: ContextKind) -> Result<Cdev, IommufdError> {
        let Way::Iommufd { iommufd, bound } = &self.way else {
            let error = io::Error::from(io::ErrorKind::Unsupported);
            return Err(IommufdError::Bind { sbdf, error });
        };
        let mut bound = bound.lock().unwrap_or_else(PoisonError::into_inner);
        let binder = Binder {
            handed: &self.handed,
            kvm: self.kvm.as_ref(),
        };
        match bound.remove(&sbdf) {
            Some(device) => Ok(device),
            None => binder.bind(iommufd, sbdf, kind),
        }
    }

    /// Refuses a device that was passed open, because the VM uses containers.
    pub(crate) fn excludes(&self, sbdf: Sbdf) -> Result<(), IommufdError> {
        match self.handed.has(sbdf) {
            true => Err(IommufdError::Excluded { sbdf }),
            false => Ok(()),
        }
    }
}

impl Way {
    fn iommufd(devices: &[(Sbdf, ContextKind)], binder: &Binder<'_>) -> Result<Self, IommufdError> {
        let iommufd = binder.handed.iommufd().map_err(IommufdError::Kernel)?;
        let bound = devices
            .iter()
            .map(|(sbdf, kind)| Ok((*sbdf, binder.bind(&iommufd, *sbdf, *kind)?)))
            .collect::<Result<_, IommufdError>>()?;
        Ok(Self::Iommufd {
            bound: Mutex::new(bound),
            iommufd,
        })
    }
}

/// Source of devices, and the VM they are bound for.
struct Binder<'a> {
    handed: &'a PreopenedDevices,
    kvm: Option<&'a Arc<DeviceFd>>,
}

impl Binder<'_> {
    fn bind(
        &self,
        iommufd: &Arc<Iommufd>,
        sbdf: Sbdf,
        kind: ContextKind,
    ) -> Result<Cdev, IommufdError> {
        let device = match self.handed.bind(sbdf, iommufd, self.kvm.cloned()) {
            Some(device) => device,
            None => {
                let path = Cdev::find(sbdf);
                let path = path.map_err(|error| IommufdError::DeviceFile { sbdf, error })?;
                Cdev::open(&path).and_then(|file| Cdev::bind(file, iommufd, self.kvm.cloned()))
            }
        };
        let device = device.map_err(|error| IommufdError::Bind { sbdf, error })?;
        if kind == ContextKind::P2p {
            let shared = probe_dmabuf(iommufd, &device);
            shared.map_err(|why| IommufdError::Peers {
                sbdf,
                why: why.to_string(),
            })?;
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_says_which_and_why() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        let choice = Choice {
            interface: Interface::Type1,
            reason: ChoiceReason::Unsupported(IommufdError::Kernel(error)),
        };
        let text = choice.to_string();
        assert!(
            text.starts_with("type1, because /dev/iommu cannot be opened: No such file"),
            "{text}"
        );
    }

    #[test]
    fn type1_can_be_had_by_asking_on_any_host() {
        let iommu = HostIommu::choose(Some(Interface::Type1), &[], None, &Arc::default()).unwrap();
        assert_eq!(iommu.choice().to_string(), "type1, as asked for");
        assert!(iommu.iommufd().is_none());
    }

    #[test]
    fn a_device_without_a_file_of_its_own_is_named() {
        // No host has this many PCI segments.
        let absent: Sbdf = "ffffffe:00:00.0".parse().unwrap();
        let (devices, handed) = ([(absent, ContextKind::P2p)], Arc::default());
        let iommu = HostIommu::choose(None, &devices, None, &handed).unwrap();
        assert_eq!(iommu.choice().interface, Interface::Type1);
        let wanted = Some(Interface::Iommufd);
        assert!(HostIommu::choose(wanted, &devices, None, &handed).is_err());
    }
}
