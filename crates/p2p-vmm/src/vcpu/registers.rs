//! Initial state of a vCPU, set through KVM.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use super::cpuid::{CpuidError, CpuidTemplate};
use super::long_mode;
use crate::loader::BootEntry;

/// RFLAGS after reset: only the bit that is always set.
const RFLAGS_RESET: u64 = 1 << 1;
/// Stack of the first instructions: below the page tables.
const BOOT_STACK: u64 = 0x8ff0;
/// FPU control words after FNINIT and LDMXCSR.
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;
/// IA32_MTRR_DEF_TYPE: MTRRs on, default type write-back. The guest's page tables select other types.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_MISC_ENABLE: fast string operations.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// Local vector table entry LINT1 in the local APIC's registers, and its delivery mode NMI.
const APIC_LVT1: usize = 0x360;
const DELIVERY_MODE_NMI: u32 = 0b100 << 8;

/// A vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("cannot create vCPU {cpu}")]
    Create { cpu: u8, source: kvm_ioctls::Error },
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    #[error("cannot read or set the {what} of vCPU {cpu}")]
    Set {
        cpu: u8,
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("KVM refuses MSR {msr:#x} of vCPU {cpu}")]
    Msr { cpu: u8, msr: u32 },
    #[error("cannot write descriptor and page tables to guest memory")]
    Tables(#[source] GuestMemoryError),
}

/// A vCPU before its thread starts.
pub(crate) struct Vcpu {
    pub(super) number: u8,
    pub(super) fd: VcpuFd,
}

impl Vcpu {
    /// Creates vCPU `number`, which is also its local APIC id. All but number 0 wait for INIT and SIPI.
    pub(crate) fn create(
        vm: &VmFd,
        number: u8,
        cpuid: &CpuidTemplate,
    ) -> Result<Self, RegisterError> {
        let fd = vm
            .create_vcpu(number.into())
            .map_err(|source| RegisterError::Create {
                cpu: number,
                source,
            })?;
        let vcpu = Self { number, fd };
        vcpu.set_clock()?;
        vcpu.check("CPUID", vcpu.fd.set_cpuid2(&cpuid.for_cpu(number)?))?;
        vcpu.set_msrs()?;
        vcpu.set_lint()?;
        Ok(vcpu)
    }

    /// Sets the speed of the time-stamp counter if KVM has not. A KVM module that was loaded before the kernel had
    /// calibrated the counter finally gives vCPUs the earlier speed. If that was lower, vCPUs have no speed, and the
    /// deadline timer of their local APIC never fires (linux arch/x86/kvm/x86.c: set_tsc_khz(), lapic.c:
    /// start_sw_tscdeadline()).
    fn set_clock(&self) -> Result<(), RegisterError> {
        const AS_THE_HOST: u32 = 0;
        const WHAT: &str = "speed of the time-stamp counter";
        if self.check(WHAT, self.fd.get_tsc_khz())? > 0 {
            return Ok(());
        }
        self.check(WHAT, self.fd.set_tsc_khz(AS_THE_HOST))
    }

    /// Sets the first instruction of this vCPU, in 64-bit mode.
    pub(crate) fn set_boot(
        &self,
        memory: &GuestMemoryMmap,
        boot: &BootEntry,
    ) -> Result<(), RegisterError> {
        long_mode::write_tables(memory).map_err(RegisterError::Tables)?;
        let mut sregs = self.check("special registers", self.fd.get_sregs())?;
        long_mode::enter(&mut sregs);
        self.check("special registers", self.fd.set_sregs(&sregs))?;
        let regs = kvm_regs {
            rip: boot.entry.0,
            rsi: boot.zero_page.0,
            rsp: BOOT_STACK,
            rbp: BOOT_STACK,
            rflags: RFLAGS_RESET,
            ..Default::default()
        };
        self.check("registers", self.fd.set_regs(&regs))?;
        let fpu = kvm_fpu {
            fcw: FPU_CONTROL,
            mxcsr: MXCSR,
            ..Default::default()
        };
        self.check("floating point state", self.fd.set_fpu(&fpu))
    }

    fn set_msrs(&self) -> Result<(), RegisterError> {
        let msrs = [
            (MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK),
            (MSR_MISC_ENABLE, FAST_STRINGS),
        ];
        for (msr, value) in msrs {
            let entry = kvm_msr_entry {
                index: msr,
                data: value,
                ..Default::default()
            };
            let refused = RegisterError::Msr {
                cpu: self.number,
                msr,
            };
            let Ok(list) = Msrs::from_entries(&[entry]) else {
                return Err(refused);
            };
            if self.check("MSRs", self.fd.set_msrs(&list))? != 1 {
                return Err(refused);
            }
        }
        Ok(())
    }

    /// LINT1 is the NMI, as Linux expects. LINT0 stays masked: there is no 8259.
    fn set_lint(&self) -> Result<(), RegisterError> {
        let mut apic = self.check("local APIC", self.fd.get_lapic())?;
        write_register(&mut apic, APIC_LVT1, DELIVERY_MODE_NMI);
        self.check("local APIC", self.fd.set_lapic(&apic))
    }

    fn check<T>(
        &self,
        what: &'static str,
        result: Result<T, kvm_ioctls::Error>,
    ) -> Result<T, RegisterError> {
        result.map_err(|source| RegisterError::Set {
            cpu: self.number,
            what,
            source,
        })
    }
}

fn write_register(apic: &mut kvm_lapic_state, offset: usize, value: u32) {
    let register = apic.regs.iter_mut().skip(offset);
    for (to, from) in register.zip(value.to_le_bytes()) {
        *to = from.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_register_is_little_endian_at_its_offset() {
        let mut apic = kvm_lapic_state::default();
        write_register(&mut apic, APIC_LVT1, 0x8000_0400);
        assert_eq!(apic.regs[0x35f..0x365], [0, 0, 4, 0, -128, 0]);
    }
}
