//! How a VM uses the host.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::json;
use crate::inherited_fd::InheritedFd;
use crate::options::{OptionError, Options};

/// How a VM uses the host; on the command line `iommufd=on,iommufd_fd=5`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "json::PlatformFields", into = "json::PlatformFields")]
pub struct PlatformConfig {
    /// Whether devices are assigned through iommufd or through VFIO containers. If absent, iommufd is used where it is
    /// supported by the kernel and by all devices.
    pub iommufd: Option<bool>,
    /// An inherited descriptor of `/dev/iommu`.
    pub iommufd_fd: Option<InheritedFd>,
}

impl PlatformConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for PlatformConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let options = Options::parse(text, &["iommufd", "iommufd_fd"])?;
        let iommufd = options.switch("iommufd")?;
        let iommufd_fd = options.value::<InheritedFd>("iommufd_fd", InheritedFd::WHAT)?;
        match (iommufd, iommufd_fd) {
            (Some(false), Some(fd)) => Err(OptionError::BadValue {
                key: "iommufd_fd".to_owned(),
                value: fd.to_string(),
                expected: "possible with iommufd=off".to_owned(),
            }),
            // A descriptor implies iommufd=on.
            (iommufd, fd) => Ok(Self {
                iommufd: iommufd.or(fd.map(|_| true)),
                iommufd_fd,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(iommufd: Option<bool>) -> PlatformConfig {
        PlatformConfig {
            iommufd,
            iommufd_fd: None,
        }
    }

    #[test]
    fn iommufd_is_on_off_or_absent() {
        assert_eq!("iommufd=on".parse(), Ok(platform(Some(true))));
        assert_eq!("iommufd=off".parse(), Ok(platform(Some(false))));
        assert!("iommufd=auto".parse::<PlatformConfig>().is_err());
        assert!("num_pci_segments=2".parse::<PlatformConfig>().is_err());
    }

    #[test]
    fn an_iommufd_descriptor_implies_iommufd() {
        let expected = PlatformConfig {
            iommufd_fd: "5".parse().ok(),
            ..platform(Some(true))
        };
        assert_eq!("iommufd=on,iommufd_fd=5".parse(), Ok(expected));
        assert_eq!("iommufd_fd=5".parse(), Ok(expected));
        for text in ["iommufd=off,iommufd_fd=5", "iommufd_fd=0"] {
            assert!(text.parse::<PlatformConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_round_trips() {
        for config in [None, Some(true), Some(false)].map(platform) {
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(
                serde_json::from_str::<PlatformConfig>(&json).unwrap(),
                config
            );
        }
        let json = r#"{"num_pci_segments":2}"#;
        let error = serde_json::from_str::<PlatformConfig>(json).unwrap_err();
        assert!(error.to_string().contains("does not have it"), "{error}");
    }
}
