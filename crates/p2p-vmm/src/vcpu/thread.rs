//! One thread per vCPU: runs the guest and hands its accesses to the devices.
#![allow(unsafe_code, reason = "kvm_run describes an error in a union")]

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuExit;
use vm_memory::GuestAddress;
use vmm_sys_util::signal::Killable;

use super::kick::{self, KickError};
use super::registers::Vcpu;
use super::run_control::{RunControl, RunDecision};
use crate::bus::GuestBus;
use crate::exit::{ExitRequest, VmExit};
use crate::sandbox::{Role, Sandbox};

/// Why the vCPUs could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuThreadsError {
    #[error(transparent)]
    Kick(#[from] KickError),
    #[error("cannot start the thread of vCPU {cpu}")]
    Spawn { cpu: u8, source: io::Error },
}

/// Why vCPUs could not be paused. They run on.
#[derive(Debug, thiserror::Error)]
#[error("vCPUs did not stop within {} seconds", PAUSE_TIMEOUT.as_secs())]
pub(crate) struct PauseError;

/// How long a vCPU may take to come out of what it does for the guest.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often in a row a vCPU is run again whose event KVM could not deliver.
const MAX_RETRIES: u32 = 3;

/// The running vCPUs of a VM; dropping it stops them.
pub(crate) struct VcpuThreads {
    control: Arc<RunControl>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuThreads {
    /// Starts all `vcpus`. [`super::block_kick_signal`] must have been called before.
    pub(crate) fn start(
        vcpus: Vec<Vcpu>,
        bus: &Arc<GuestBus>,
        exit: &Arc<ExitRequest>,
        sandbox: &Arc<Sandbox>,
    ) -> Result<Self, VcpuThreadsError> {
        let mut running = Self {
            control: Arc::new(RunControl::new()),
            threads: Vec::with_capacity(vcpus.len()),
        };
        for vcpu in vcpus {
            let cpu = vcpu.number;
            kick::open_in_kvm_run(&vcpu.fd)?;
            let runner = Runner {
                vcpu,
                bus: Arc::clone(bus),
                exit: Arc::clone(exit),
                control: Arc::clone(&running.control),
                sandbox: Arc::clone(sandbox),
                undelivered: 0,
            };
            let thread = Builder::new()
                .name(format!("vcpu{cpu}"))
                .spawn(move || runner.run())
                .map_err(|source| VcpuThreadsError::Spawn { cpu, source })?;
            running.threads.push(thread);
        }
        Ok(running)
    }

    /// Stops the guest where it is. Devices go on: what they do to guest memory they still do.
    pub(crate) fn pause(&self) -> Result<(), PauseError> {
        self.control.pause();
        self.kick();
        if self
            .control
            .wait_until_parked(self.threads.len(), PAUSE_TIMEOUT)
        {
            return Ok(());
        }
        self.control.resume();
        Err(PauseError)
    }

    /// Lets the guest go on.
    pub(crate) fn resume(&self) {
        self.control.resume();
    }

    fn kick(&self) {
        for thread in &self.threads {
            // A thread that has already ended cannot be signalled, and need not be.
            let _ = thread.kill(kick::kick_signal());
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.control.stop();
        self.kick();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread had panicked");
            }
        }
    }
}

/// A vCPU on its own thread.
struct Runner {
    vcpu: Vcpu,
    bus: Arc<GuestBus>,
    exit: Arc<ExitRequest>,
    control: Arc<RunControl>,
    sandbox: Arc<Sandbox>,
    /// How often in a row KVM could not deliver an event.
    undelivered: u32,
}

impl Runner {
    fn run(mut self) {
        let _guard = EndGuard {
            cpu: self.vcpu.number,
            exit: Arc::clone(&self.exit),
            control: Arc::clone(&self.control),
        };
        if let Err(error) = self.sandbox.enter(Role::Vcpu) {
            let error = anyhow::Error::from(error);
            self.exit.request(VmExit::Failed(format!("{error:#}")));
            return;
        }
        loop {
            match self.control.wait_until_runnable() {
                RunDecision::Run => {}
                RunDecision::Resumed => self.announce_pause(),
                RunDecision::Stop => return,
            }
            if let Some(exit) = self.step() {
                self.exit.request(exit);
                return;
            }
        }
    }

    /// Tells the guest that it was paused, so that its watchdogs do not take the time for a hang (linux
    /// Documentation/virt/kvm/api.rst: KVM_KVMCLOCK_CTRL).
    fn announce_pause(&self) {
        if let Err(error) = self.vcpu.fd.kvmclock_ctrl() {
            // EINVAL: the guest does not use KVM's clock.
            log::debug!(
                "vCPU {} was not told of the pause: {error}",
                self.vcpu.number
            );
        }
    }

    /// Runs the guest up to its next exit; `Some` if the VM ends with it.
    fn step(&mut self) -> Option<VmExit> {
        let cpu = self.vcpu.number;
        let exit = match self.vcpu.fd.run() {
            Ok(exit) => exit,
            // Kicked; or woken while waiting for its start. Who kicks has closed the gate before, so nothing is missed.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                kick::take();
                return None;
            }
            Err(error) => return Some(VmExit::Failed(format!("cannot run vCPU {cpu}: {error}"))),
        };
        let undelivered = std::mem::take(&mut self.undelivered);
        match exit {
            VcpuExit::IoIn(port, data) => self.bus.ports.read(port, data),
            VcpuExit::IoOut(port, data) => self.bus.ports.write(port, data),
            VcpuExit::MmioRead(gpa, data) => self.bus.mmio_read(GuestAddress(gpa), data),
            VcpuExit::MmioWrite(gpa, data) => self.bus.mmio_write(GuestAddress(gpa), data),
            // A device that the kernel took away; the guest tries again and finds nothing there.
            VcpuExit::MemoryFault { gpa, .. } if self.bus.memory_fault(GuestAddress(gpa)) => {}
            VcpuExit::Shutdown => {
                return Some(VmExit::Reset("the guest had a triple fault"));
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Some(VmExit::PowerOff),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => {
                return Some(VmExit::Reset("the guest asked KVM for a reset"));
            }
            VcpuExit::Intr => {}
            VcpuExit::InternalError => return self.internal_error(undelivered),
            other => {
                let text = format!(
                    "vCPU {cpu} stopped for a reason that the VMM does not handle: {other:?}"
                );
                return Some(VmExit::Failed(text));
            }
        }
        None
    }

    /// What becomes of an error of KVM's: the end, with what KVM says and where the guest was, or another try.
    ///
    /// There is one if the guest did MMIO while an event was delivered to it. KVM has kept the event if there was one, and
    /// nothing of the access was done, so a guest that goes on does both. On AMD processors linux 7.2
    /// arch/x86/kvm/svm/svm.c: `svm_check_emulate_instruction()` looks at the type of the event without asking whether
    /// it is valid, and takes one that an emulated processor has left there for one under way.
    fn internal_error(&mut self, undelivered: u32) -> Option<VmExit> {
        let cpu = self.vcpu.number;
        let run = self.vcpu.fd.get_kvm_run();
        // SAFETY: KVM fills this variant of the union for KVM_EXIT_INTERNAL_ERROR, and all its bit patterns are valid.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let suberror = internal.suberror;
        let place = match self.vcpu.fd.get_regs() {
            Ok(regs) => format!("rip {:#x}", regs.rip),
            Err(error) => format!("registers not readable: {error}"),
        };
        let text = format!("KVM internal error on vCPU {cpu}: suberror {suberror}, {place}");
        if suberror == KVM_INTERNAL_ERROR_DELIVERY_EV && undelivered < MAX_RETRIES {
            log::warn!("{text}: going on");
            self.undelivered = undelivered + 1;
            return None;
        }
        Some(VmExit::Failed(text))
    }
}

/// Tells the others when the thread of a vCPU ends, and ends the VM if it panics.
struct EndGuard {
    cpu: u8,
    exit: Arc<ExitRequest>,
    control: Arc<RunControl>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.control.thread_ended();
        if std::thread::panicking() {
            let text = format!("the thread of vCPU {} panicked", self.cpu);
            self.exit.request(VmExit::Failed(text));
        }
    }
}
