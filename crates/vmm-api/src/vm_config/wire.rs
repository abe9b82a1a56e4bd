//! The JSON of a VM's description as it is spelled in cloud-hypervisor, with what this VMM lacks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    ConsoleConfig, CpusConfig, MemoryConfig, PayloadConfig, PlatformConfig, SerialConfig, VmConfig,
};
use crate::DeviceConfig;
use crate::lacking::Lacking;

/// `VmConfig`
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what this VMM lacks is only looked at")]
pub(crate) struct VmFields {
    #[serde(default)]
    cpus: CpusConfig,
    #[serde(default)]
    memory: MemoryConfig,
    payload: PayloadConfig,
    devices: Option<Vec<DeviceConfig>>,
    #[serde(default)]
    serial: SerialConfig,
    #[serde(default)]
    console: ConsoleConfig,
    #[serde(default)]
    rate_limit_groups: Lacking,
    #[serde(default)]
    disks: Lacking,
    #[serde(default)]
    net: Lacking,
    #[serde(default)]
    rng: Lacking,
    #[serde(default)]
    balloon: Lacking,
    #[serde(default)]
    generic_vhost_user: Lacking,
    #[serde(default)]
    fs: Lacking,
    #[serde(default)]
    pmem: Lacking,
    #[serde(default)]
    debug_console: Lacking,
    #[serde(default)]
    user_devices: Lacking,
    #[serde(default)]
    vdpa: Lacking,
    #[serde(default)]
    vsock: Lacking,
    #[serde(default)]
    pvmemcontrol: Lacking,
    #[serde(default)]
    pvpanic: Lacking,
    #[serde(default)]
    iommu: Lacking,
    #[serde(default)]
    numa: Lacking,
    #[serde(default)]
    watchdog: Lacking,
    #[serde(default)]
    rtc: Lacking,
    #[serde(default)]
    gdb: Lacking,
    #[serde(default)]
    pci_segments: Lacking,
    #[serde(default)]
    platform: PlatformConfig,
    #[serde(default)]
    tpm: Lacking,
    #[serde(default)]
    landlock_enable: Lacking,
    #[serde(default)]
    landlock_rules: Lacking,
    #[serde(default)]
    ivshmem: Lacking,
}

impl From<VmFields> for VmConfig {
    fn from(fields: VmFields) -> Self {
        Self {
            cpus: fields.cpus,
            memory: fields.memory,
            payload: fields.payload,
            platform: fields.platform,
            devices: fields.devices.unwrap_or_default(),
            serial: fields.serial,
            console: fields.console,
        }
    }
}

/// `CpusConfig`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what this VMM lacks is only looked at")]
pub(crate) struct CpusFields {
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 16)))]
    pub(super) boot_vcpus: u32,
    /// As many as boot_vcpus: none come later.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 16)))]
    pub(super) max_vcpus: u32,
    #[serde(default, skip_serializing)]
    topology: Lacking,
    #[serde(default, skip_serializing)]
    kvm_hyperv: Lacking,
    #[serde(default, skip_serializing)]
    affinity: Lacking,
}

impl CpusFields {
    pub(super) fn of(vcpus: u8) -> Self {
        Self {
            boot_vcpus: vcpus.into(),
            max_vcpus: vcpus.into(),
            ..Self::default()
        }
    }
}

/// `MemoryConfig`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what this VMM lacks is only looked at")]
pub(crate) struct MemoryFields {
    /// Bytes, in whole pages.
    #[cfg_attr(feature = "schema", schemars(range(min = 4096), extend("multipleOf" = 4096)))]
    pub(super) size: u64,
    #[serde(default, skip_serializing)]
    mergeable: Lacking,
    #[serde(default, skip_serializing)]
    hotplug_size: Lacking,
    #[serde(default, skip_serializing)]
    hotplugged_size: Lacking,
    #[serde(default, skip_serializing)]
    shared: Lacking,
    #[serde(default, skip_serializing)]
    hugepages: Lacking,
    #[serde(default, skip_serializing)]
    hugepage_size: Lacking,
    #[serde(default, skip_serializing)]
    prefault: Lacking,
    #[serde(default, skip_serializing)]
    reserve: Lacking,
    #[serde(default, skip_serializing)]
    zones: Lacking,
}

impl MemoryFields {
    pub(super) fn of(size_bytes: u64) -> Self {
        Self {
            size: size_bytes,
            ..Self::default()
        }
    }
}

/// `PlatformConfig`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what this VMM lacks is only looked at")]
pub(crate) struct PlatformFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    iommufd: Option<bool>,
    #[serde(default, skip_serializing)]
    iommufd_fd: Lacking,
    #[serde(default, skip_serializing)]
    num_pci_segments: Lacking,
    #[serde(default, skip_serializing)]
    iommu_segments: Lacking,
    #[serde(default, skip_serializing)]
    iommu_address_width: Lacking,
    #[serde(default, skip_serializing)]
    serial_number: Lacking,
    #[serde(default, skip_serializing)]
    uuid: Lacking,
    #[serde(default, skip_serializing)]
    oem_strings: Lacking,
    #[serde(default, skip_serializing)]
    tdx: Lacking,
    #[serde(default, skip_serializing)]
    sev_snp: Lacking,
}

impl From<PlatformFields> for PlatformConfig {
    fn from(fields: PlatformFields) -> Self {
        Self {
            iommufd: fields.iommufd,
            iommufd_fd: None,
        }
    }
}

impl From<PlatformConfig> for PlatformFields {
    fn from(platform: PlatformConfig) -> Self {
        Self {
            iommufd: platform.iommufd,
            ..Self::default()
        }
    }
}

/// `PayloadConfig`
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what this VMM lacks is only looked at")]
pub(crate) struct PayloadFields {
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    cmdline: Option<String>,
    #[serde(default)]
    firmware: Lacking,
    #[serde(default)]
    igvm: Lacking,
    #[serde(default)]
    host_data: Lacking,
}

impl From<PayloadFields> for PayloadConfig {
    fn from(fields: PayloadFields) -> Self {
        Self {
            kernel: fields.kernel,
            initramfs: fields.initramfs,
            cmdline: fields.cmdline,
        }
    }
}

/// How a console ends in the host, for the serial port and the virtio console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) enum ConsoleMode {
    Off,
    Null,
    Tty,
    File,
}

/// `SerialConfig`, `ConsoleConfig`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what this VMM lacks is only looked at")]
pub(crate) struct ConsoleFields {
    pub(super) mode: ConsoleMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<PathBuf>,
    #[serde(default, skip_serializing)]
    socket: Lacking,
    #[serde(default, skip_serializing)]
    url: Lacking,
    #[serde(default, skip_serializing)]
    iommu: Lacking,
    #[serde(default, skip_serializing)]
    pci_segment: Lacking,
    #[serde(default, skip_serializing)]
    pci_device_id: Lacking,
}

impl ConsoleFields {
    pub(super) fn file(path: PathBuf) -> Self {
        Self {
            file: Some(path),
            ..Self::of(ConsoleMode::File)
        }
    }

    pub(super) fn of(mode: ConsoleMode) -> Self {
        Self {
            mode,
            file: None,
            socket: Lacking,
            url: Lacking,
            iommu: Lacking,
            pci_segment: Lacking,
            pci_device_id: Lacking,
        }
    }
}
