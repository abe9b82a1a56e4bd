//! Configuration of an assigned device: one type for command line, REST and tests.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use iommu_group::Sbdf;
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::options::{OptionError, Options, quote};
use crate::unsupported::Unsupported;

/// Error of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two devices have the same name.
    #[error("Identifier {0} is not unique")]
    DuplicateId(String),
    /// Invalid name of a device.
    #[error("identifier {0:?} is not 1 to 64 letters, digits, dots, dashes or underscores")]
    BadId(String),
    /// A device without a path and without a descriptor.
    #[error("a device has no path, and no descriptor came with the request")]
    NoPath,
}

const KEYS: [&str; 6] = ["path", "fd", "id", "p2p", "p2p_domain", "expose"];

/// A device to assign to a virtual machine.
///
/// The text form is an option list in cloud-hypervisor's syntax plus `p2p`. The JSON form is an object with the same
/// keys.
///
/// ```
/// let device: vmm_api::DeviceConfig = "path=/sys/bus/pci/devices/0000:03:00.0,id=nvme0,p2p=on".parse()?;
/// assert_eq!(device.id.as_deref(), Some("nvme0"));
/// assert!(device.p2p);
/// # Ok::<(), vmm_api::OptionError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "DeviceFields")]
#[cfg_attr(
    feature = "schema",
    schemars(description = "A device to assign to a VM")
)]
pub struct DeviceConfig {
    /// The device's directory in sysfs. For a device given as a descriptor it is absent until the VMM has found it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A descriptor of `/dev/vfio/devices/vfioN`, opened by another process. The number is valid only in the process
    /// that inherited it; a request to the API carries the descriptor itself.
    #[serde(skip)]
    pub fd: Option<InheritedFd>,
    /// Name of the device in the API; chosen by the VMM if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether the device may take part in peer-to-peer DMA. Off by default.
    pub p2p: bool,
    /// Name of the P2P domain that it joins; the unnamed domain if absent. Members of a domain are peers of each other
    /// only. Needs `p2p`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p2p_domain: Option<String>,
    /// Functions that may be reachable without the IOMMU because of this device: functions that it reaches, or the
    /// device itself if others reach it. An exposure that is not listed is refused. The text form joins the functions
    /// by `+`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub expose: BTreeSet<Sbdf>,
}

/// JSON of a device in cloud-hypervisor's form, with the fields that this VMM does not support.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "unsupported fields are only checked")]
struct DeviceFields {
    path: Option<PathBuf>,
    id: Option<String>,
    #[serde(default)]
    p2p: bool,
    p2p_domain: Option<String>,
    #[serde(default)]
    expose: BTreeSet<Sbdf>,
    /// Ignored: the descriptor comes with the message, as in cloud-hypervisor.
    #[serde(default)]
    fd: Option<i64>,
    #[serde(default)]
    iommu: Unsupported,
    #[serde(default)]
    pci_segment: Unsupported,
    #[serde(default)]
    pci_device_id: Unsupported,
    #[serde(default)]
    x_nv_gpudirect_clique: Unsupported,
    #[serde(default)]
    x_exclude_mmap_bars: Unsupported,
}

impl TryFrom<DeviceFields> for DeviceConfig {
    type Error = OptionError;

    fn try_from(fields: DeviceFields) -> Result<Self, OptionError> {
        if let (Some(fd), Some(_)) = (fields.fd, &fields.path) {
            return Err(beside_path(fd));
        }
        Self {
            path: fields.path,
            fd: None,
            id: fields.id,
            p2p: fields.p2p,
            p2p_domain: fields.p2p_domain,
            expose: fields.expose,
        }
        .checked()
    }
}

impl DeviceConfig {
    /// The device's directory in sysfs.
    ///
    /// # Errors
    /// [`ConfigError::NoPath`] if it is unknown.
    pub fn directory(&self) -> Result<&Path, ConfigError> {
        self.path.as_deref().ok_or(ConfigError::NoPath)
    }

    /// Checks that the fields are consistent.
    fn checked(self) -> Result<Self, OptionError> {
        match (&self.p2p_domain, self.fd, &self.path) {
            (Some(domain), _, _) if !self.p2p => Err(OptionError::BadValue {
                key: "p2p_domain".to_owned(),
                value: domain.clone(),
                expected: "possible without p2p=on".to_owned(),
            }),
            (_, Some(fd), Some(_)) => Err(beside_path(fd)),
            _ => Ok(self),
        }
    }
}

/// Parses functions that are joined by `+`.
fn functions(text: &str) -> Result<BTreeSet<Sbdf>, OptionError> {
    let parsed = text.split('+').map(str::parse);
    parsed
        .collect::<Result<_, _>>()
        .map_err(|_| OptionError::BadValue {
            key: "expose".to_owned(),
            value: text.to_owned(),
            expected: "functions joined by +, such as 04:00.0+05:00.0".to_owned(),
        })
}

fn beside_path(fd: impl fmt::Display) -> OptionError {
    OptionError::BadValue {
        key: "fd".to_owned(),
        value: fd.to_string(),
        expected: "possible beside path".to_owned(),
    }
}

impl FromStr for DeviceConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let options = Options::parse(text, &KEYS)?;
        let fd = options.value("fd", InheritedFd::WHAT)?;
        let path = match fd {
            None => Some(options.required("path")?),
            Some(_) => options.text("path"),
        };
        Self {
            path: path.map(PathBuf::from),
            fd,
            id: options.text("id").map(str::to_owned),
            p2p: options.switch("p2p")?.unwrap_or(false),
            p2p_domain: options.text("p2p_domain").map(str::to_owned),
            expose: options
                .text("expose")
                .map_or(Ok(BTreeSet::new()), functions)?,
        }
        .checked()
    }
}

impl fmt::Display for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.fd) {
            (Some(path), _) => write!(f, "path={}", quote(&path.to_string_lossy()))?,
            (None, Some(fd)) => write!(f, "fd={fd}")?,
            (None, None) => f.write_str("fd=")?,
        }
        if let Some(id) = &self.id {
            write!(f, ",id={}", quote(id))?;
        }
        if self.p2p {
            f.write_str(",p2p=on")?;
        }
        if let Some(domain) = &self.p2p_domain {
            write!(f, ",p2p_domain={}", quote(domain))?;
        }
        for (n, function) in self.expose.iter().enumerate() {
            let before = if n == 0 { ",expose=" } else { "+" };
            write!(f, "{before}{function}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NVME: &str = "/sys/bus/pci/devices/0000:03:00.0";

    fn device(id: Option<&str>, p2p: bool) -> DeviceConfig {
        DeviceConfig {
            path: Some(NVME.into()),
            fd: None,
            id: id.map(str::to_owned),
            p2p,
            p2p_domain: None,
            expose: BTreeSet::new(),
        }
    }

    #[test]
    fn p2p_is_off_unless_asked_for() {
        let parsed: DeviceConfig = format!("path={NVME}").parse().unwrap();
        assert_eq!(parsed, device(None, false));
    }

    #[test]
    fn text_round_trips() {
        let odd = DeviceConfig {
            path: Some("/tmp/a,\"b\"".into()),
            fd: None,
            id: Some("x,y".into()),
            p2p: true,
            p2p_domain: Some("left".into()),
            expose: ["04:00.0", "05:00.0"].map(|at| at.parse().unwrap()).into(),
        };
        for config in [
            device(None, false),
            device(Some("nvme0"), false),
            device(Some("nvme0"), true),
            odd,
        ] {
            assert_eq!(config.to_string().parse(), Ok(config));
        }
    }

    #[test]
    fn json_round_trips() {
        for config in [device(None, false), device(Some("nvme0"), true)] {
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<DeviceConfig>(&json).unwrap(), config);
        }
    }

    #[test]
    fn exposures_are_accepted_by_address() {
        let device: DeviceConfig = format!("path={NVME},expose=05:00.0+0000:04:00.0")
            .parse()
            .unwrap();
        assert_eq!(
            device.to_string(),
            format!("path={NVME},expose=0000:04:00.0+0000:05:00.0")
        );
        let json = serde_json::to_value(&device).unwrap();
        assert_eq!(
            json["expose"],
            serde_json::json!(["0000:04:00.0", "0000:05:00.0"])
        );
        assert_eq!(
            serde_json::from_value::<DeviceConfig>(json).unwrap(),
            device
        );
        let error = "path=/x,expose=all".parse::<DeviceConfig>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "option \"expose\": \"all\" is not functions joined by +, such as 04:00.0+05:00.0"
        );
    }

    #[test]
    fn json_with_unknown_field_is_refused() {
        let error = serde_json::from_str::<DeviceConfig>(r#"{"path":"/x","p2pp":true}"#);
        assert!(error.unwrap_err().to_string().contains("`p2pp`"));
    }

    #[test]
    fn path_is_required() {
        let error = "p2p=on".parse::<DeviceConfig>().unwrap_err();
        assert_eq!(error, OptionError::Missing { key: "path".into() });
    }

    #[test]
    fn a_descriptor_replaces_the_path() {
        let device: DeviceConfig = "fd=7,p2p=on".parse().unwrap();
        assert_eq!(device.fd, "7".parse().ok());
        assert_eq!(device.directory(), Err(ConfigError::NoPath));
        assert_eq!(device.to_string(), "fd=7,p2p=on");
        let error = "fd=7,path=/x".parse::<DeviceConfig>().unwrap_err();
        let text = "option \"fd\": \"7\" is not possible beside path";
        assert_eq!(error.to_string(), text);
        assert!("fd=1".parse::<DeviceConfig>().is_err(), "standard output");
    }

    #[test]
    fn a_descriptor_number_in_a_request_is_ignored() {
        let device: DeviceConfig = serde_json::from_str(r#"{"fd":5,"id":"x"}"#).unwrap();
        assert_eq!((device.fd, &device.path), (None, &None));
        assert!(serde_json::from_str::<DeviceConfig>(r#"{"fd":"5"}"#).is_err());
        let error = serde_json::from_str::<DeviceConfig>(r#"{"fd":5,"path":"/x"}"#).unwrap_err();
        assert!(error.to_string().contains("beside path"), "{error}");
    }

    #[test]
    fn unknown_key_is_refused_with_the_known_ones() {
        let error = "path=/x,iommu=on".parse::<DeviceConfig>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown option \"iommu\" (known: path, fd, id, p2p, p2p_domain, expose)"
        );
    }

    #[test]
    fn a_domain_requires_p2p() {
        let error = "path=/x,p2p_domain=a".parse::<DeviceConfig>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "option \"p2p_domain\": \"a\" is not possible without p2p=on"
        );
    }

    #[test]
    fn p2p_takes_on_or_off() {
        let error = "path=/x,p2p=1".parse::<DeviceConfig>().unwrap_err();
        assert_eq!(error.to_string(), "option \"p2p\": \"1\" is not on or off");
    }
}
