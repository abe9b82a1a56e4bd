//! ACPI tables of the guest: a hardware-reduced platform (ACPI 6.5 §4.1) with one PCI segment.

mod dsdt;
mod hotplug;
mod image;
mod raw;

pub(crate) use image::{AcpiImage, AcpiRequest};
