//! The guest's slots, and the registers between the VMM and the guest's ACPI methods.
//!
//! ```text
//! VMM                       registers                  guest (ACPI methods of the DSDT)
//! announce(slot) ──▶ inserted ─┐
//! request_unplug() ▶ leaving ──┼── interrupt ──▶ read EVENTS, select a bus, read INSERTED and LEAVING,
//! rescan(bus) ─────▶ rescan ───┘                 notify the operating system: device check, eject request, bus check
//! vacate() ◀─────── EJECT ◀───────────────────── _EJ0, when it has released everything in the slot
//! ```
//! Every register has 32 bits. Reading INSERTED, LEAVING or EVENTS clears it, so a notification is delivered once; a
//! repeated request delivers it again. A guest can only empty occupied slots.
//!
//! Other VMMs have similar interfaces (QEMU's docs/specs/acpi_pci_hotplug.rst). Only this project's DSDT uses this one.

mod registers;

pub use registers::{Register, SlotRegisters};
