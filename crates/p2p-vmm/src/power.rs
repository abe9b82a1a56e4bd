//! Power and reset registers: ACPI sleep control and status, the reset control port 0xcf9 and the reset command of
//! the keyboard controller.

use std::sync::Arc;

use crate::exit::{ExitRequest, VmExit};

/// ACPI sleep control register (ACPI 6.5 §4.8.3.7). The port number is ours; the FADT names it.
pub(crate) const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register (ACPI 6.5 §4.8.3.7).
pub(crate) const SLEEP_STATUS_PORT: u16 = 0x601;
/// Reset control register, at the usual port of chipsets.
pub(crate) const RESET_PORT: u16 = 0xcf9;
/// Value that resets the system when written to [`RESET_PORT`]: full reset of the CPUs.
pub(crate) const RESET_VALUE: u8 = 0x06;
/// Command and status port of the keyboard controller (i8042).
pub(crate) const KEYBOARD_COMMAND_PORT: u16 = 0x64;

/// Sleep type of S5, named in the DSDT.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;
/// "Go to sleep now" bit of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Bit of the reset control register that triggers the reset.
const RESET_TRIGGER: u8 = 1 << 2;
/// i8042 command: pulse the CPU's reset line.
const KEYBOARD_RESET: u8 = 0xfe;

/// The request that a write to a power register makes.
fn decode(port: u16, value: u8) -> Option<VmExit> {
    match port {
        SLEEP_CONTROL_PORT if value & SLEEP_ENABLE != 0 && value >> 2 & 0x7 == SLEEP_TYPE_S5 => {
            Some(VmExit::PowerOff)
        }
        RESET_PORT if value & RESET_TRIGGER != 0 => {
            Some(VmExit::Reset("the guest wrote to the reset register"))
        }
        KEYBOARD_COMMAND_PORT if value == KEYBOARD_RESET => Some(VmExit::Reset(
            "the guest wrote the reset command to the keyboard controller",
        )),
        _ => None,
    }
}

/// The power registers of a VM.
#[derive(Debug)]
pub(crate) struct PowerRegisters {
    exit: Arc<ExitRequest>,
}

impl PowerRegisters {
    pub(crate) fn new(exit: Arc<ExitRequest>) -> Self {
        Self { exit }
    }

    /// Reads a register. All read 0: nothing is ever pending.
    pub(crate) fn read(&self, data: &mut [u8]) {
        data.fill(0);
    }

    /// Writes a register, which may end the VM.
    pub(crate) fn write(&self, port: u16, data: &[u8]) {
        log::trace!("guest writes {data:x?} to power register {port:#x}");
        if let [value] = *data
            && let Some(exit) = decode(port, value)
        {
            self.exit.request(exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_enable_switches_off() {
        let s5 = SLEEP_TYPE_S5 << 2;
        assert_eq!(
            decode(SLEEP_CONTROL_PORT, s5 | SLEEP_ENABLE),
            Some(VmExit::PowerOff)
        );
        assert_eq!(decode(SLEEP_CONTROL_PORT, s5), None);
        assert_eq!(decode(SLEEP_CONTROL_PORT, 3 << 2 | SLEEP_ENABLE), None);
        assert_eq!(decode(SLEEP_STATUS_PORT, s5 | SLEEP_ENABLE), None);
    }

    #[test]
    fn reset_register_needs_its_trigger() {
        let reset = |value| matches!(decode(RESET_PORT, value), Some(VmExit::Reset(_)));
        assert!(reset(RESET_VALUE));
        assert!(!reset(0x02));
    }

    #[test]
    fn keyboard_controller_ignores_other_commands_than_reset() {
        let reset = |value| matches!(decode(KEYBOARD_COMMAND_PORT, value), Some(VmExit::Reset(_)));
        assert!(reset(0xfe));
        assert!(!reset(0xaa));
    }
}
