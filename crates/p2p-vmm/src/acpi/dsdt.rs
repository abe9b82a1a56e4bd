//! Contents of the DSDT: sleep state, serial port, reserved resources, PCI host bridge, slots.

use ::hotplug::Register;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, BufferData, CreateDWordField, Device, EISAName,
    Else, Equal, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package,
    PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use iommu_group::Address;

use super::hotplug;
use super::raw::RawAml;
use crate::layout::{GpaRange, Layout};
use crate::pci::{DEVICES, PINS, gsi};
use crate::power::{SLEEP_CONTROL_PORT, SLEEP_TYPE_S5};
use crate::serial::{COM1_GSI, COM1_PORT};
use crate::slot_control::SLOT_PORT;

/// _OSC of a PCI host bridge (PCI Firmware Specification r3.3 §4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// _DSM of a PCI host bridge (PCI Firmware Specification r3.3 §4.6).
const DSM_UUID: &str = "E5C937D0-3553-4D7A-9117-EA4D19C3434D";
/// _DSM function 5: whether the OS may ignore the boot configuration (PCI Firmware Specification r3.3 §4.6.5).
const DSM_PRESERVE_BOOT_CONFIG: u8 = 5;
/// _OSC control bit 4: the OS may use the PCI Express capability. Hot-plug, PME and AER (bits 0 to 3) stay with the
/// platform: hotplug uses ACPI, and no errors are reported.
const OSC_GRANTED: u8 = 1 << 4;
/// _OSC result bits (ACPI 6.5 §6.2.11): unrecognised UUID, unrecognised revision, capabilities masked.
const OSC_BAD_UUID: u8 = 1 << 2;
const OSC_BAD_REVISION: u8 = 1 << 3;
const OSC_MASKED: u8 = 1 << 4;
/// Sleep control and status, one byte each, at adjacent ports.
const SLEEP_PORTS: u8 = 2;
/// Registers of the serial port.
const SERIAL_PORTS: u8 = 8;

/// Body of the DSDT.
pub(super) fn body(layout: &Layout, serial: bool) -> RawAml {
    let s5 = Name::new(
        "_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]),
    );
    let reserved = reserved_resources(&layout.ecam);
    let host_bridge = host_bridge(layout);
    let com1 = serial_port();
    let events = hotplug::devices();
    let mut devices: Vec<&dyn Aml> = vec![&reserved, &host_bridge, &events];
    if serial {
        devices.push(&com1);
    }
    RawAml::concat(&[&s5, &Scope::new("_SB_".into(), devices)])
}

fn serial_port() -> RawAml {
    RawAml::concat(&[&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(COM1_PORT, COM1_PORT, 1, SERIAL_PORTS),
                    // Consumer, edge triggered, active high, not shared.
                    &Interrupt::new(true, true, false, false, COM1_GSI.number()),
                ]),
            ),
        ],
    )])
}

/// Reserves resources of no device. Linux uses ECAM only if it is reserved (linux 7.2 arch/x86/pci/mmconfig-shared.c:
/// is_acpi_reserved()).
fn reserved_resources(ecam: &GpaRange) -> RawAml {
    let ecam = memory32(ecam);
    RawAml::concat(&[&Device::new(
        "RSVD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &ecam,
                    &IO::new(SLEEP_CONTROL_PORT, SLEEP_CONTROL_PORT, 1, SLEEP_PORTS),
                    &IO::new(SLOT_PORT, SLOT_PORT, 1, Register::LEN_BYTES),
                ]),
            ),
        ],
    )])
}

/// The root of the segment, with the address of its ECAM (`_CBA`, PCI Firmware Specification r3.3 §4.1.3).
///
/// A table `MCFG` could have it too, but it makes Linux probe every bus number up to the last for further root buses,
/// in 16,000 accesses that the VMM has to handle (linux 7.2 arch/x86/pci/legacy.c: pcibios_fixup_peer_bridges()).
fn host_bridge(layout: &Layout) -> RawAml {
    let windows = windows(layout);
    RawAml::concat(&[&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CBA".into(), &layout.ecam.start().value()),
            // Cache coherent DMA.
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&windows])),
            &interrupt_routing(),
            &osc(),
            &dsm(),
            &hotplug::slots(),
        ],
    )])
}

fn windows(layout: &Layout) -> RawAml {
    let uncached = AddressSpaceCacheable::NotCacheable;
    let mut resources = vec![
        RawAml::concat(&[&AddressSpace::new_bus_number(0x00u16, 0xff)]),
        RawAml::concat(&[&IO::new(0xcf8, 0xcf8, 1, 8)]),
    ];
    for window in &layout.pci {
        let (start, last) = (window.start().value(), window.end().value() - 1);
        let resource = match (u32::try_from(start), u32::try_from(last)) {
            (Ok(start), Ok(last)) => {
                RawAml::concat(&[&AddressSpace::new_memory(uncached, true, start, last, None)])
            }
            _ => RawAml::concat(&[&AddressSpace::new_memory(uncached, true, start, last, None)]),
        };
        resources.push(resource);
    }
    let resources: Vec<&dyn Aml> = resources
        .iter()
        .map(|resource| resource as &dyn Aml)
        .collect();
    RawAml::concat(&resources)
}

/// `_PRT`: the I/O APIC pin of every interrupt pin on the root bus (ACPI 6.5 §6.2.13). Entries without a link device
/// are level triggered and active low.
fn interrupt_routing() -> RawAml {
    let pins = (0..DEVICES).flat_map(|device| (0..PINS).map(move |pin| (device, pin)));
    let mut table = PackageBuilder::new();
    for (device, pin) in pins {
        let function = u32::from(device) << 16 | 0xffff;
        let gsi = gsi(device, pin).number();
        table.add_element(&Package::new(vec![&function, &pin, &ZERO, &gsi]));
    }
    RawAml::concat(&[&Name::new("_PRT".into(), &table)])
}

/// `_OSC(uuid, revision, count, capabilities)`: grants the bits of [`OSC_GRANTED`].
fn osc() -> RawAml {
    let (status, control) = (Path::new("STAT"), Path::new("CTRL"));
    let granted = Local(0);
    RawAml::concat(&[&Method::new(
        "_OSC".into(),
        4,
        // Serialized, because it creates named objects while it runs.
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &ZERO),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new(OSC_UUID)),
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &8u8),
                    &And::new(&granted, &control, &OSC_GRANTED),
                    &If::new(
                        &NotEqual::new(&Arg(1), &ONE),
                        vec![&Or::new(&status, &status, &OSC_BAD_REVISION)],
                    ),
                    &If::new(
                        &NotEqual::new(&control, &granted),
                        vec![&Or::new(&status, &status, &OSC_MASKED)],
                    ),
                    &Store::new(&control, &granted),
                ],
            ),
            &Else::new(vec![&Or::new(&status, &status, &OSC_BAD_UUID)]),
            &Return::new(&Arg(3)),
        ],
    )])
}

/// `_DSM(uuid, revision, function, arguments)`: the OS must keep the addresses in BARs and bridge windows.
fn dsm() -> RawAml {
    let supported = BufferData::new(vec![1 | 1 << DSM_PRESERVE_BOOT_CONFIG]);
    let nothing = BufferData::new(vec![0]);
    RawAml::concat(&[&Method::new(
        "_DSM".into(),
        4,
        false,
        vec![
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new(DSM_UUID)),
                vec![
                    &If::new(&Equal::new(&Arg(2), &ZERO), vec![&Return::new(&supported)]),
                    &If::new(
                        &Equal::new(&Arg(2), &DSM_PRESERVE_BOOT_CONFIG),
                        vec![&Return::new(&ZERO)],
                    ),
                ],
            ),
            &Return::new(&nothing),
        ],
    )])
}

/// A resource of a range below 4 GiB.
fn memory32(range: &GpaRange) -> Memory32Fixed {
    let below_4_gib =
        |number: u64| u32::try_from(number).expect("the layout keeps this below 4 GiB");
    Memory32Fixed::new(
        true,
        below_4_gib(range.start().value()),
        below_4_gib(range.len_bytes()),
    )
}
