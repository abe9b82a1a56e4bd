//! JSON form of a VM's configuration in cloud-hypervisor's format, with the fields that this VMM does not support.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    ConsoleConfig, CpusConfig, MemoryConfig, PayloadConfig, PlatformConfig, SerialConfig, VmConfig,
};
use crate::DeviceConfig;
use crate::unsupported::Unsupported;

/// `VmConfig`
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "unsupported fields are only checked")]
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
    rate_limit_groups: Unsupported,
    #[serde(default)]
    disks: Unsupported,
    #[serde(default)]
    net: Unsupported,
    #[serde(default)]
    rng: Unsupported,
    #[serde(default)]
    balloon: Unsupported,
    #[serde(default)]
    generic_vhost_user: Unsupported,
    #[serde(default)]
    fs: Unsupported,
    #[serde(default)]
    pmem: Unsupported,
    #[serde(default)]
    debug_console: Unsupported,
    #[serde(default)]
    user_devices: Unsupported,
    #[serde(default)]
    vdpa: Unsupported,
    #[serde(default)]
    vsock: Unsupported,
    #[serde(default)]
    pvmemcontrol: Unsupported,
    #[serde(default)]
    pvpanic: Unsupported,
    #[serde(default)]
    iommu: Unsupported,
    #[serde(default)]
    numa: Unsupported,
    #[serde(default)]
    watchdog: Unsupported,
    #[serde(default)]
    rtc: Unsupported,
    #[serde(default)]
    gdb: Unsupported,
    #[serde(default)]
    pci_segments: Unsupported,
    #[serde(default)]
    platform: PlatformConfig,
    #[serde(default)]
    tpm: Unsupported,
    #[serde(default)]
    landlock_enable: Unsupported,
    #[serde(default)]
    landlock_rules: Unsupported,
    #[serde(default)]
    ivshmem: Unsupported,
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
#[expect(dead_code, reason = "unsupported fields are only checked")]
pub(crate) struct CpusFields {
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 16)))]
    pub(super) boot_vcpus: u32,
    /// Must equal boot_vcpus: vCPUs cannot be added later.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 16)))]
    pub(super) max_vcpus: u32,
    #[serde(default, skip_serializing)]
    topology: Unsupported,
    #[serde(default, skip_serializing)]
    kvm_hyperv: Unsupported,
    #[serde(default, skip_serializing)]
    affinity: Unsupported,
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
#[expect(dead_code, reason = "unsupported fields are only checked")]
pub(crate) struct MemoryFields {
    /// Bytes, a multiple of 4096.
    #[cfg_attr(feature = "schema", schemars(range(min = 4096), extend("multipleOf" = 4096)))]
    pub(super) size: u64,
    #[serde(default, skip_serializing)]
    mergeable: Unsupported,
    #[serde(default, skip_serializing)]
    hotplug_size: Unsupported,
    #[serde(default, skip_serializing)]
    hotplugged_size: Unsupported,
    #[serde(default, skip_serializing)]
    shared: Unsupported,
    #[serde(default, skip_serializing)]
    hugepages: Unsupported,
    #[serde(default, skip_serializing)]
    hugepage_size: Unsupported,
    #[serde(default, skip_serializing)]
    prefault: Unsupported,
    #[serde(default, skip_serializing)]
    reserve: Unsupported,
    #[serde(default, skip_serializing)]
    zones: Unsupported,
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
#[expect(dead_code, reason = "unsupported fields are only checked")]
pub(crate) struct PlatformFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    iommufd: Option<bool>,
    #[serde(default, skip_serializing)]
    iommufd_fd: Unsupported,
    #[serde(default, skip_serializing)]
    num_pci_segments: Unsupported,
    #[serde(default, skip_serializing)]
    iommu_segments: Unsupported,
    #[serde(default, skip_serializing)]
    iommu_address_width: Unsupported,
    #[serde(default, skip_serializing)]
    serial_number: Unsupported,
    #[serde(default, skip_serializing)]
    uuid: Unsupported,
    #[serde(default, skip_serializing)]
    oem_strings: Unsupported,
    #[serde(default, skip_serializing)]
    tdx: Unsupported,
    #[serde(default, skip_serializing)]
    sev_snp: Unsupported,
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
#[expect(dead_code, reason = "unsupported fields are only checked")]
pub(crate) struct PayloadFields {
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    cmdline: Option<String>,
    #[serde(default)]
    firmware: Unsupported,
    #[serde(default)]
    igvm: Unsupported,
    #[serde(default)]
    host_data: Unsupported,
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

/// Host side of the serial port and of the virtio console.
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
#[expect(dead_code, reason = "unsupported fields are only checked")]
pub(crate) struct ConsoleFields {
    pub(super) mode: ConsoleMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<PathBuf>,
    #[serde(default, skip_serializing)]
    socket: Unsupported,
    #[serde(default, skip_serializing)]
    url: Unsupported,
    #[serde(default, skip_serializing)]
    iommu: Unsupported,
    #[serde(default, skip_serializing)]
    pci_segment: Unsupported,
    #[serde(default, skip_serializing)]
    pci_device_id: Unsupported,
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
            socket: Unsupported,
            url: Unsupported,
            iommu: Unsupported,
            pci_segment: Unsupported,
            pci_device_id: Unsupported,
        }
    }
}
