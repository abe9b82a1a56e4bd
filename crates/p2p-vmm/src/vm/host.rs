//! What stays across resets of the VM: the KVM device, the host's end of the serial port, and what a process has for all
//! of its VMs.

use std::sync::Arc;

use anyhow::{Context, ensure};
use kvm_ioctls::{Cap, Kvm};
use p2p_vfio::PreopenedDevices;
use vmm_api::VmConfig;

use crate::descriptors::Descriptors;
use crate::host_reader::HostReader;
use crate::sandbox::Sandbox;
use crate::serial::SerialBackend;

/// KVM's API version since linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// The host's side of all VMs that a process runs, one after the other.
pub(crate) struct Host {
    pub(super) kvm: Kvm,
    pub(super) serial: SerialBackend,
}

/// What all VMs of a process share, whether they run or not.
pub(super) struct VmContext {
    /// Source of host snapshots.
    pub(super) host_reader: Arc<HostReader>,
    /// Devices that were passed as open descriptors.
    pub(super) preopened: Arc<PreopenedDevices>,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) descriptors: Descriptors,
    /// Whether devices can be added while a VM runs. If so, VMs reserve address space and bus numbers for them.
    pub(super) hotpluggable: bool,
}

impl Host {
    /// Opens the host resources for the first VM.
    pub(super) fn open(config: &VmConfig) -> anyhow::Result<Self> {
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
        // Last, because it changes the mode of the terminal.
        let serial = SerialBackend::open(&config.serial)?;
        Ok(Self { kvm, serial })
    }
}
