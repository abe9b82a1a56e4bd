//! The kernel's interface through which a VM has its devices: iommufd where it does, else VFIO containers.

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

/// An interface of the kernel to IOMMU contexts.
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

/// What a VM's devices would need of the host for iommufd, and do not have.
#[derive(Debug, Error)]
pub enum IommufdError {
    /// The kernel has none, or it may not be opened.
    #[error("/dev/iommu cannot be opened: {0}")]
    Kernel(io::Error),
    /// The device can be opened through its group only.
    #[error("{sbdf} has no file in /dev/vfio/devices: {error}")]
    DeviceFile {
        /// The device.
        sbdf: Sbdf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The device could not be made this process's.
    #[error("{sbdf} cannot be bound to iommufd: {error}")]
    Bind {
        /// The device.
        sbdf: Sbdf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The operator wants something else.
    #[error("{sbdf} is handed in open, which takes iommufd, and the VM is to have type1")]
    Excluded {
        /// The device.
        sbdf: Sbdf,
    },
    /// Its peers could not reach it.
    #[error("peers of {sbdf} could not reach it: {why}")]
    Peers {
        /// The device.
        sbdf: Sbdf,
        /// What the kernel cannot do.
        why: String,
    },
}

/// Which interface a VM has, and why.
#[derive(Debug)]
pub struct Choice {
    /// The interface.
    pub interface: Interface,
    /// What made it this one.
    pub reason: ChoiceReason,
}

/// What made an interface the one.
#[derive(Debug)]
pub enum ChoiceReason {
    /// The operator.
    Asked,
    /// Kernel and devices have all that is needed for iommufd.
    Possible,
    /// Something is missing for iommufd.
    Lacking(IommufdError),
}

impl fmt::Display for ChoiceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("as asked for"),
            Self::Possible => f.write_str("which kernel and devices have all of"),
            Self::Lacking(what) => write!(f, "because {what}"),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.interface, self.reason)
    }
}

/// The interface of one VM, with what its contexts have in common.
pub struct HostIommu {
    choice: Choice,
    way: Way,
    kvm: Option<Arc<DeviceFd>>,
    handed: Arc<PreopenedDevices>,
}

enum Way {
    Type1,
    Iommufd {
        // Closed before what they are bound to.
        bound: Mutex<BTreeMap<Sbdf, Cdev>>,
        iommufd: Arc<Iommufd>,
    },
}

impl HostIommu {
    /// Finds out whether iommufd has all that `devices` need, by taking them, and uses it then; else containers.
    /// With `wanted`, this one or none; what is `handed` in is for iommufd only. `kvm` is the VM's KVM-VFIO device.
    ///
    /// # Errors
    /// [`IommufdError`] if iommufd is wanted and not possible.
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
            (Some(Err(lack)), None) => (Way::Type1, ChoiceReason::Lacking(lack)),
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

    /// Which interface it is, and why.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    pub(crate) fn kvm(&self) -> Option<Arc<DeviceFd>> {
        self.kvm.clone()
    }

    /// The iommufd, if that is the interface.
    pub(crate) fn iommufd(&self) -> Option<&Arc<Iommufd>> {
        match &self.way {
            Way::Type1 => None,
            Way::Iommufd { iommufd, .. } => Some(iommufd),
        }
    }

    /// A device that is bound to the iommufd: since the choice, or from now on.
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

    /// Whether a device, which comes to a VM with containers, must not: it is handed in open.
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

/// Where devices come from, and the VM that they come to.
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
            reason: ChoiceReason::Lacking(IommufdError::Kernel(error)),
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
        // Nobody has as many PCI domains.
        let absent: Sbdf = "ffffffe:00:00.0".parse().unwrap();
        let (devices, handed) = ([(absent, ContextKind::P2p)], Arc::default());
        let iommu = HostIommu::choose(None, &devices, None, &handed).unwrap();
        assert_eq!(iommu.choice().interface, Interface::Type1);
        let wanted = Some(Interface::Iommufd);
        assert!(HostIommu::choose(wanted, &devices, None, &handed).is_err());
    }
}
