//! Description of a VM: one type for command line, REST and tests, with cloud-hypervisor's names.

mod console;
mod cpus;
mod memory;
mod platform;
mod wire;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DeviceConfig;

pub use console::{ConsoleConfig, ConsoleError, SerialConfig};
pub use cpus::CpusConfig;
pub use memory::MemoryConfig;
pub use platform::PlatformConfig;

/// Everything that describes one VM.
///
/// ```
/// let config: vmm_api::VmConfig = serde_json::from_str(
///     r#"{"payload":{"kernel":"/vmlinuz"},"cpus":{"boot_vcpus":2,"max_vcpus":2}}"#,
/// )?;
/// assert_eq!(config.cpus.boot_vcpus(), 2);
/// assert_eq!(config.memory.size_bytes(), 512 << 20);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "wire::VmFields")]
#[cfg_attr(
    feature = "schema",
    schemars(description = "Everything that describes one VM")
)]
pub struct VmConfig {
    /// The vCPUs.
    pub cpus: CpusConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// What it boots.
    pub payload: PayloadConfig,
    /// Of what the host offers, what the VM is made of.
    #[serde(skip_serializing_if = "PlatformConfig::is_default")]
    pub platform: PlatformConfig,
    /// The assigned devices.
    pub devices: Vec<DeviceConfig>,
    /// Where the first serial port ends.
    pub serial: SerialConfig,
    /// The virtio console, which can only be off.
    pub console: ConsoleConfig,
}

/// What a VM boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "wire::PayloadFields")]
pub struct PayloadConfig {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
}

/// Why a configuration is not one of a VM that can be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two devices have one name.
    #[error("Identifier {0} is not unique")]
    DuplicateId(String),
    /// A name that cannot be one.
    #[error("identifier {0:?} is not 1 to 64 letters, digits, dots, dashes or underscores")]
    BadId(String),
    /// A device of which nothing says where it is.
    #[error("a device has no path, and no descriptor came with it")]
    NoPath,
}

/// Longest name of a device, in bytes.
const MAX_ID_BYTES: usize = 64;
/// What cloud-hypervisor puts before the number where it names devices itself.
const GENERATED_ID: &str = "_vfio";

impl VmConfig {
    /// Gives a name to every device that has none, and checks that no two have the same.
    ///
    /// # Errors
    /// Names that are no names, or not unique.
    pub fn name_devices(&mut self) -> Result<(), ConfigError> {
        let mut taken = BTreeSet::new();
        for id in self.devices.iter().filter_map(|device| device.id.clone()) {
            if !is_id(&id) {
                return Err(ConfigError::BadId(id));
            }
            if taken.contains(&id) {
                return Err(ConfigError::DuplicateId(id));
            }
            taken.insert(id);
        }
        let mut free = (0_u64..)
            .map(|number| format!("{GENERATED_ID}{number}"))
            .filter(|id| !taken.contains(id));
        for device in &mut self.devices {
            if device.id.is_none() {
                device.id = free.next();
            }
        }
        Ok(())
    }

    /// The device with this name.
    pub fn device(&self, id: &str) -> Option<&DeviceConfig> {
        self.devices
            .iter()
            .find(|device| device.id.as_deref() == Some(id))
    }
}

fn is_id(id: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(letter)
}

#[cfg(test)]
mod tests;
