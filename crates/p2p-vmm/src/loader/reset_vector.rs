//! The program at the processor's reset vector, which resets the system.
//!
//! On a hardware-reduced platform without EFI, Linux jumps to the BIOS instead of using the reset register (linux 7.2
//! arch/x86/kernel/reboot.c: reboot_init() and native_machine_emergency_restart()), so there must be code.

use vm_memory::GuestAddress;

use crate::power::{RESET_PORT, RESET_VALUE};

/// Target of a jump to `ffff:0000`.
pub(super) const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);

/// The program, in 16-bit code.
pub(super) fn program() -> [u8; 9] {
    let [port_low, port_high] = RESET_PORT.to_le_bytes();
    [
        0xba,
        port_low,
        port_high, // mov dx, RESET_PORT
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

#[cfg(test)]
mod tests {
    use iommu_group::Address;

    use super::*;
    use crate::loader::ACPI_AREA;

    #[test]
    fn program_ends_below_one_mib_and_above_the_tables() {
        assert!(RESET_VECTOR.0 >= ACPI_AREA.end().value());
        assert!(program().len() <= 16);
    }
}
