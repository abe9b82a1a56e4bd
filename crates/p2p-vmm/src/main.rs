//! p2p-vmm: the reference VMM for peer-to-peer DMA between assigned devices.
//!
//! A small x86-64 KVM VMM that boots Linux. Exit status: 0 if the guest powered off or a signal ended the VM, 1 on
//! failure, 2 if the request was refused.

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

/// Exit status of a refused request, which changed nothing; clap uses it too.
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
                    "       pass a descriptor that is open for reading and writing: {}",
                    descriptor_example(error)
                );
                return ExitCode::from(REFUSED);
            }
            ExitCode::FAILURE
        }
    }
}

/// The user's next step for a device that the host does not have.
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

/// The user's next step without iommufd.
fn iommufd_hint(error: &NoIommufd) -> &'static str {
    match error {
        NoIommufd::Excluded { .. } => "remove iommufd=off, or give the device's path",
        _ => "without --platform iommufd=on the devices are assigned by type1",
    }
}

/// An example of a usable descriptor.
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
    // Before any thread is started: threads inherit the signal mask.
    let signals = EndSignals::open()?;
    block_kick_signal()?;
    // Before the capabilities are dropped that the host thread needs to drop its own.
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
        // The VM's description, which clients and the host's daemon read, lists the accepted exposures.
        for device in &mut config.devices {
            device.expose.extend(&request.expose);
        }
        preopened = preopened::take_inherited(config)?;
        // Before any device is opened: a refusal changes nothing.
        devices::check_devices(&config.devices, &host)?;
    }
    let process = Process {
        log,
        descriptors,
        host: Arc::new(host),
        signals,
    };
    vm::run(request, preopened, process)
}
