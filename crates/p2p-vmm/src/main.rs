//! p2p-vmm: the reference VMM for peer-to-peer DMA between assigned devices.
//!
//! A small x86-64 KVM VMM that boots Linux. Exit status: 0 the guest switched itself off or a signal ended the VM,
//! 1 something failed, 2 the request was refused.

mod acpi;
mod bus;
mod cli;
mod descriptors;
mod devices;
mod exit;
mod host_reader;
mod irq;
mod layout;
mod loader;
mod lock;
mod logger;
mod memory;
mod mmio_claims;
mod pci;
mod policy;
mod ports;
mod power;
mod preopened;
mod sandbox;
mod serial;
mod signals;
mod slot_control;
mod slots;
mod vcpu;
mod vm;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use iommu_group::SysfsError;
use p2p_vfio::{Handed, HandedError, NoIommufd, Refusal};

use crate::cli::Cli;
use crate::descriptors::Descriptors;
use crate::host_reader::HostReader;
use crate::layout::LayoutError;
use crate::sandbox::Role;
use crate::signals::EndSignals;
use crate::vcpu::block_kick_signal;
use crate::vm::Process;

/// Exit status when the request was refused and nothing was changed; clap uses it too.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(error) = error.downcast_ref::<SysfsError>() {
                eprintln!("       {}", sysfs_hint(error));
                return ExitCode::from(REFUSED);
            }
            if error.is::<Refusal>() || error.is::<LayoutError>() {
                return ExitCode::from(REFUSED);
            }
            if let Some(error) = error.downcast_ref::<NoIommufd>() {
                eprintln!("       {}", iommufd_hint(error));
                return ExitCode::from(REFUSED);
            }
            if let Some(error) = error.downcast_ref::<HandedError>() {
                eprintln!(
                    "       hand in what was opened for reading and writing: {}",
                    descriptor_example(error)
                );
                return ExitCode::from(REFUSED);
            }
            ExitCode::FAILURE
        }
    }
}

/// What to do about a device that the host does not have.
fn sysfs_hint(error: &SysfsError) -> &'static str {
    match error {
        SysfsError::NoGroup { .. } => {
            "an IOMMU is needed: intel_iommu=on or amd_iommu=on, and VT-d or AMD-Vi in the firmware"
        }
        _ => {
            "give the directory of a PCI function, path=/sys/bus/pci/devices/0000:03:00.0 (lspci -D lists them)"
        }
    }
}

/// What to do without iommufd.
fn iommufd_hint(error: &NoIommufd) -> &'static str {
    match error {
        NoIommufd::Excluded { .. } => "leave out iommufd=off, or give the device's path",
        _ => "without --platform iommufd=on the devices are assigned by type1",
    }
}

/// How to hand in what should have been.
fn descriptor_example(error: &HandedError) -> &'static str {
    match error {
        HandedError::NoIommufd(_) => "--platform iommufd_fd=4 4<>/dev/iommu",
        _ => "--device fd=5 5<>/dev/vfio/devices/vfio0",
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let log = logger::init(cli.log_level()).context("cannot start the log")?;
    let descriptors = Descriptors::raise();
    let mut request = cli.into_request();
    request.sandbox.prepare()?;
    // Before any thread is started: all inherit what is blocked.
    let signals = EndSignals::open()?;
    block_kick_signal()?;
    // Before rights are given up that it takes to have fewer.
    let sandbox = Arc::clone(&request.sandbox);
    let host = HostReader::start(move || sandbox.enter_io(Role::Host));
    let host = host.context("cannot start the thread that reads the host")?;
    request.sandbox.begin()?;
    let mut policy = policy::read(request.policy.as_deref())?;
    policy.expose(request.expose.iter().copied());
    let host = host.with_policy(policy);
    let mut preopened = Handed::default();
    if let Some(config) = &mut request.vm {
        config.name_devices()?;
        // Whoever asks for the VM's description sees what was accepted, the host's daemon included.
        for device in &mut config.devices {
            device.expose.extend(&request.expose);
        }
        preopened = preopened::take_inherited(config)?;
        // Before anything is opened: a refusal changes nothing.
        devices::judge(&config.devices, &host)?;
    }
    let process = Process {
        log,
        descriptors,
        host: Arc::new(host),
        signals,
    };
    vm::run(request, preopened, process)
}
