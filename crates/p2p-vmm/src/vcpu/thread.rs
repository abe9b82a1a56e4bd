//! One thread per vCPU: runs the guest and dispatches its accesses to the devices.
#![allow(unsafe_code, reason = "kvm_run has the error details in a union")]

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

/// The vCPU threads could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuThreadsError {
    #[error(transparent)]
    Kick(#[from] KickError),
    #[error("cannot start the thread of vCPU {cpu}")]
    Spawn { cpu: u8, source: io::Error },
}

/// vCPUs could not be paused. They continue to run.
#[derive(Debug, thiserror::Error)]
#[error("vCPUs did not stop within {} seconds", PAUSE_TIMEOUT.as_secs())]
pub(crate) struct PauseError;

/// Time for a vCPU to finish the access that it handles.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most successive retries of a vCPU whose event KVM could not deliver.
const MAX_RETRIES: u32 = 3;

/// The running vCPUs of a VM. Dropping it stops them.
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

    /// Pauses the vCPUs. Devices continue, including their DMA to guest memory.
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

    /// Resumes the vCPUs.
    pub(crate) fn resume(&self) {
        self.control.resume();
    }

    fn kick(&self) {
        for thread in &self.threads {
            // Signalling a thread that has ended fails, which is no error.
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
                log::error!("a vCPU thread panicked");
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
    /// Number of successive events that KVM could not deliver.
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

    /// Announces the pause to the guest, so that its watchdogs do not report a hang (linux
    /// Documentation/virt/kvm/api.rst: KVM_KVMCLOCK_CTRL).
    fn announce_pause(&self) {
        if let Err(error) = self.vcpu.fd.kvmclock_ctrl() {
            // EINVAL: the guest does not use KVM's clock.
            log::debug!(
                "cannot announce the pause to vCPU {}: {error}",
                self.vcpu.number
            );
        }
    }

    /// Runs the guest until its next exit; `Some` if the exit ends the VM.
    fn step(&mut self) -> Option<VmExit> {
        let cpu = self.vcpu.number;
        let exit = match self.vcpu.fd.run() {
            Ok(exit) => exit,
            // Kicked, or woken while waiting for its start. The kicking thread has set the target before.
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
            // A device that the kernel took away. The guest retries and finds no device.
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

    /// Handles an internal error of KVM: ends the VM with KVM's error and the guest's position, or retries.
    ///
    /// KVM reports one if the guest does MMIO while an event is delivered to it. KVM has kept the event if there was
    /// one, and has not executed the access, so a retry does both. On AMD processors linux 7.2
    /// arch/x86/kvm/svm/svm.c: `svm_check_emulate_instruction()` checks the type of the event but not its valid bit.
    /// It takes a stale event of an emulated processor for one in delivery.
    fn internal_error(&mut self, undelivered: u32) -> Option<VmExit> {
        let cpu = self.vcpu.number;
        let run = self.vcpu.fd.get_kvm_run();
        // SAFETY: KVM fills this variant of the union for KVM_EXIT_INTERNAL_ERROR, and all its bit patterns are
        // valid.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let suberror = internal.suberror;
        let place = match self.vcpu.fd.get_regs() {
            Ok(regs) => format!("rip {:#x}", regs.rip),
            Err(error) => format!("cannot read registers: {error}"),
        };
        let text = format!("KVM internal error on vCPU {cpu}: suberror {suberror}, {place}");
        if suberror == KVM_INTERNAL_ERROR_DELIVERY_EV && undelivered < MAX_RETRIES {
            log::warn!("{text}: retrying");
            self.undelivered = undelivered + 1;
            return None;
        }
        Some(VmExit::Failed(text))
    }
}

/// Records the end of a vCPU thread, and ends the VM if the thread panics.
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
