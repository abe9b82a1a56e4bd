//! Runs the vCPU on this thread.

use iommu_group::{Address, Gpa};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::ports::Ports;
use crate::{PciFunctions, Result, Vm};

/// Most successive retries after an internal error of KVM.
const MOST_RETRIES: u32 = 3;

/// Runs the guest until it powers off.
pub(crate) fn run(vm: &Vm, mut vcpu: VcpuFd, functions: &mut dyn PciFunctions) -> Result<()> {
    let mut ports = Ports::new(vm)?;
    let mut retries = 0;
    loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Err(error) => return Err(format!("cannot run the vCPU: {error}").into()),
        };
        match exit {
            VcpuExit::IoIn(port, data) => ports.read(port, data, functions),
            VcpuExit::IoOut(port, data) => {
                if ports.write(port, data, functions)? {
                    return Ok(());
                }
            }
            VcpuExit::MmioRead(gpa, data) => {
                data.fill(0xff);
                functions.mmio_read(Gpa::new(gpa), data);
            }
            VcpuExit::MmioWrite(gpa, data) => functions.mmio_write(Gpa::new(gpa), data),
            VcpuExit::Intr => {}
            // An access while KVM delivers an event: a retry does both. On emulated AMD processors KVM takes a stale
            // event for one in delivery (linux 7.2 arch/x86/kvm/svm/svm.c: svm_check_emulate_instruction()).
            VcpuExit::InternalError if retries < MOST_RETRIES => {
                retries += 1;
                continue;
            }
            other => return Err(format!("the vCPU stopped: {other:?}").into()),
        }
        retries = 0;
    }
}
