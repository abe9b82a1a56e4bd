//! p2p-vmm: the reference VMM for peer-to-peer DMA between assigned devices.
//!
//! A small x86-64 KVM VMM that boots Linux. Exit status: 0 if the guest powered off or a signal ended the VM, 1 on
//! failure, 2 if the request was refused.

mod acpi;
mod bus;
mod cli;
mod descriptors;
mod devices;
mod error;
mod exit;
mod host_reader;
mod irq;
mod layout;
mod loader;
mod lock;
mod logger;
mod memory;
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

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use p2p_vfio::PreopenedDevices;

use crate::cli::Cli;
use crate::descriptors::Descriptors;
use crate::error::VmmError;
use crate::host_reader::HostReader;
use crate::sandbox::Role;
use crate::signals::EndSignals;
use crate::vcpu::block_kick_signal;
use crate::vm::Process;

/// Exit status of a refused request, which changed nothing; clap uses it too.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    let Err(error) = start(Cli::parse()) else {
        return ExitCode::SUCCESS;
    };
    let (is_refusal, hint) = (error.is_refusal(), error.hint());
    // With its hints and all its causes.
    eprint!("error: {error:#}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    if let Some(hint) = hint {
        eprintln!("       {hint}");
    }
    match is_refusal {
        true => ExitCode::from(REFUSED),
        false => ExitCode::FAILURE,
    }
}

fn start(cli: Cli) -> Result<(), VmmError> {
    let log = logger::init(cli.log_level()).context("cannot start the log")?;
    let descriptors = Descriptors::raise();
    let mut request = cli.into_request();
    request.sandbox.prepare().map_err(VmmError::failed)?;
    // Before any thread is started: threads inherit the signal mask.
    let signals = EndSignals::open().map_err(VmmError::failed)?;
    block_kick_signal().map_err(VmmError::failed)?;
    // Before the capabilities are dropped that the host thread needs to drop its own.
    let sandbox = Arc::clone(&request.sandbox);
    let host = HostReader::start(move || sandbox.enter_io(Role::Host));
    let host = host.context("cannot start the thread that reads the host")?;
    request.sandbox.begin().map_err(VmmError::failed)?;
    let mut policy = policy::read(request.policy.as_deref())?;
    policy.expose(request.expose.iter().copied());
    let host = host.with_policy(policy);
    let mut preopened = PreopenedDevices::default();
    if let Some(config) = &mut request.vm {
        config.name_devices()?;
        // The VM's description, which clients and the host's daemon read, lists the accepted exposures.
        for device in &mut config.devices {
            device.expose.extend(&request.expose);
        }
        preopened = preopened::take_inherited(config)?;
        // Before any device is opened: a refusal changes nothing.
        devices::plan_devices(&config.devices, &host)?;
    }
    let process = Process {
        log,
        descriptors,
        host: Arc::new(host),
        signals,
    };
    vm::run(request, preopened, process)
}
