//! A device as `--device` requests it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use iommu_group::Sbdf;
use iommu_group::assignment::DomainName;
use thiserror::Error;

use super::option_list::{OptionList, Unpaired, switch};

/// A requested device. `p2p`, `p2p_domain` and `expose` are removed from the option list because cloud-hypervisor does
/// not know them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestedDevice {
    /// The options for cloud-hypervisor.
    pub(crate) options: OptionList,
    /// The device in sysfs; `None` if it is passed as a descriptor.
    pub(crate) path: Option<PathBuf>,
    /// Whether the device has peers.
    pub(crate) p2p: bool,
    /// The P2P domain.
    pub(crate) domain: Option<String>,
    /// Functions whose exposure through this device is accepted.
    pub(crate) expose: BTreeSet<Sbdf>,
    /// Whether the device is behind the guest's virtual IOMMU, in its own context.
    pub(crate) viommu: bool,
    /// The requested clique number, if any.
    pub(crate) clique: Option<String>,
}

/// Error in a `--device` value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum DeviceError {
    #[error("--device {0}")]
    Unpaired(#[from] Unpaired),
    #[error("--device {text}: {key} must be on or off")]
    NoSwitch { text: String, key: &'static str },
    #[error("--device {text}: p2p_domain needs p2p=on")]
    DomainAlone { text: String },
    #[error("--device {text}: expose needs functions joined by +, such as 04:00.0+05:00.0")]
    NoFunctions { text: String },
}

impl RequestedDevice {
    /// The P2P domain to join.
    pub(crate) fn domain_name(&self) -> Option<DomainName> {
        DomainName::requested(self.p2p, self.domain.as_deref())
    }

    pub(crate) fn parse(text: &str) -> Result<Self, DeviceError> {
        let mut options = OptionList::parse(text)?;
        let on = |key, value: Option<String>| match value.as_deref().map(switch) {
            None => Ok(false),
            Some(Some(on)) => Ok(on),
            Some(None) => Err(DeviceError::NoSwitch {
                text: text.to_owned(),
                key,
            }),
        };
        let p2p = on("p2p", options.take("p2p"))?;
        let viommu = on("iommu", options.get("iommu"))?;
        let domain = options.take("p2p_domain");
        if domain.is_some() && !p2p {
            return Err(DeviceError::DomainAlone {
                text: text.to_owned(),
            });
        }
        let expose = options.take("expose").unwrap_or_default();
        let expose = expose.split('+').filter(|name| !name.is_empty());
        let expose = expose.map(str::parse).collect::<Result<_, _>>();
        Ok(Self {
            expose: expose.map_err(|_| DeviceError::NoFunctions {
                text: text.to_owned(),
            })?,
            path: options.get("path").map(PathBuf::from),
            clique: options.get("x_nv_gpudirect_clique"),
            options,
            p2p,
            domain,
            viommu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_is_taken_out() {
        let requested = RequestedDevice::parse(
            "path=/a,p2p=on,id=x,p2p_domain=left,iommu=off,expose=4:0.0+05:00.0",
        )
        .unwrap();
        assert_eq!(requested.expose.len(), 2);
        assert_eq!(requested.options.to_string(), "path=/a,id=x,iommu=off");
        assert!(requested.p2p && !requested.viommu);
        assert_eq!(requested.domain.as_deref(), Some("left"));
        assert_eq!(requested.path, Some("/a".into()));
    }

    #[test]
    fn peers_are_asked_for_by_name_only() {
        let requested = RequestedDevice::parse("fd=4,x_nv_gpudirect_clique=1").unwrap();
        assert!(!requested.p2p && requested.path.is_none());
        assert_eq!(requested.clique.as_deref(), Some("1"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("path=/a,p2p=perhaps", "p2p must be on or off"),
            ("path=/a,p2p_domain=x", "needs p2p=on"),
            ("path=/a,expose=all", "functions joined by +"),
            ("path=/a,x_exclude_mmap_bars=[0", "unbalanced"),
        ] {
            let error = RequestedDevice::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
