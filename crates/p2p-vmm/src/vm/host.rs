//! What outlives a reset of the VM: the KVM device, the host's end of the serial port, the rules for devices.

use std::sync::Arc;

use anyhow::{Context, ensure};
use hotplug::VmConfig;
use kvm_ioctls::{Cap, Kvm};
use p2p_vfio::Handed;

use crate::descriptors::Descriptors;
use crate::host_reader::HostReader;
use crate::serial::SerialBackend;

/// The version that KVM's interface has had since linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// The VMM's side of all VMs that one process runs, one after the other.
pub(crate) struct Host {
    pub(super) kvm: Kvm,
    pub(super) serial: SerialBackend,
    pub(super) host_reader: Arc<HostReader>,
    /// Devices that came open.
    pub(super) preopened: Arc<Handed>,
    pub(super) descriptors: Descriptors,
    /// Whether a VM keeps room for devices that come later.
    pub(super) hotpluggable: bool,
}

/// What a host is opened for.
pub(super) struct HostParams<'a> {
    /// The first VM.
    pub(super) config: &'a VmConfig,
    /// What devices are judged by.
    pub(super) host_reader: Arc<HostReader>,
    /// Devices that came open.
    pub(super) preopened: Arc<Handed>,
    pub(super) descriptors: Descriptors,
    /// Whether a VM keeps room for devices that come later.
    pub(super) hotpluggable: bool,
}

impl Host {
    /// Opens what the first VM needs.
    pub(super) fn open(params: HostParams<'_>) -> anyhow::Result<Self> {
        let kvm = Kvm::new().context("cannot open /dev/kvm (is the KVM module loaded?)")?;
        let version = kvm.get_api_version();
        ensure!(
            version == KVM_API_VERSION,
            "KVM has interface version {version}, not {KVM_API_VERSION}"
        );
        for capability in [
            Cap::Irqchip,
            Cap::Irqfd,
            Cap::IrqRouting,
            Cap::Pit2,
            Cap::SetTssAddr,
            Cap::UserMemory,
        ] {
            ensure!(
                kvm.check_extension(capability),
                "KVM on this host lacks the capability {capability:?}"
            );
        }
        // Last, because it changes the terminal.
        let serial = SerialBackend::open(&params.config.serial)?;
        Ok(Self {
            kvm,
            serial,
            host_reader: params.host_reader,
            preopened: params.preopened,
            descriptors: params.descriptors,
            hotpluggable: params.hotpluggable,
        })
    }
}
