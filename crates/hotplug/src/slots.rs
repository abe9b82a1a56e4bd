//! The guest's slots, and the registers by which the VMM and the guest's ACPI methods talk about them.
//!
//! ```text
//! VMM                       registers                  guest (ACPI methods of the DSDT)
//! announce(slot) ──▶ inserted ─┐
//! ask(slot) ───────▶ leaving ──┼── interrupt ──▶ read EVENTS, select a bus, read INSERTED and LEAVING,
//! rescan(bus) ─────▶ rescan ───┘                 notify the operating system: device check, eject request, bus check
//! take() ◀───────── EJECT ◀───────────────────── _EJ0, when it has let go of everything in the slot
//! ```
//! Every register has 32 bits. INSERTED, LEAVING and EVENTS are empty after a read, so a notification is delivered once;
//! asking again delivers it again. What a guest writes can do no more than empty slots that are occupied.
//!
//! The interface is of the kind that other VMMs have (QEMU's docs/specs/acpi_pci_hotplug.rst); only our own DSDT uses it.

mod address;
mod registers;

pub use address::{Slot, SlotBus};
pub use registers::{Register, SlotRegisters};
