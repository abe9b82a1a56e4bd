//! Configuration of a VM: one type for command line, REST and tests, with cloud-hypervisor's names.

mod console;
mod cpus;
mod json;
mod memory;
mod platform;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ConfigError, DeviceConfig};

pub use console::{ConsoleConfig, ConsoleError, SerialConfig};
pub use cpus::CpusConfig;
pub use memory::MemoryConfig;
pub use platform::PlatformConfig;

/// Configuration of a VM.
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
#[serde(from = "json::VmFields")]
#[cfg_attr(feature = "schema", schemars(description = "Configuration of a VM"))]
pub struct VmConfig {
    /// The vCPUs.
    pub cpus: CpusConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// The kernel and its arguments.
    pub payload: PayloadConfig,
    /// How the VM uses the host.
    #[serde(skip_serializing_if = "PlatformConfig::is_default")]
    pub platform: PlatformConfig,
    /// The assigned devices.
    pub devices: Vec<DeviceConfig>,
    /// Host side of the first serial port.
    pub serial: SerialConfig,
    /// The virtio console. It can only be off.
    pub console: ConsoleConfig,
}

/// What a VM boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "json::PayloadFields")]
pub struct PayloadConfig {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
}

/// Largest length of a device's name, in bytes.
const MAX_ID_BYTES: usize = 64;
/// Prefix of generated names, as in cloud-hypervisor.
const GENERATED_ID: &str = "_vfio";

impl VmConfig {
    /// Generates the missing names of devices and checks that all names are unique.
    ///
    /// # Errors
    /// A name is invalid or not unique.
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
