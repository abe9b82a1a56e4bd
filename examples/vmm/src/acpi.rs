//! The guest's ACPI tables: a hardware-reduced platform (ACPI 6.5 §4.1) with a PCI host bridge and a serial port.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package,
    ResourceTemplate, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use iommu_group::{Address, AddressRange, Gpa};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Result;
use crate::ports::{COM1, COM1_PIN, CONFIG_ADDRESS, SLEEP_CONTROL, SLEEP_TYPE_OFF};

const OEM: [u8; 6] = *b"EXMPL ";
const TABLE: [u8; 8] = *b"EXAMPLE ";
/// Revision of the DSDT: from 2 on integers have 64 bits.
const DSDT_REVISION: u8 = 6;
/// No VGA, no CMOS clock (ACPI 6.5 §5.2.9.3); the bits for ISA devices and an i8042 stay clear.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// Writes the tables to guest memory from `base` on, the RSDP first.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    base: GuestAddress,
    windows: &[AddressRange<Gpa>],
) -> Result<()> {
    let mut next = GuestAddress(base.0 + 64);
    let mut put = |table: &dyn Aml| {
        let (mut bytes, at) = (Vec::new(), next);
        table.to_aml_bytes(&mut bytes);
        memory.write_slice(&bytes, at)?;
        next = GuestAddress((at.0 + bytes.len() as u64).next_multiple_of(64));
        Ok::<u64, vm_memory::GuestMemoryError>(at.0)
    };
    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, TABLE, 1);
    dsdt.append_slice(&body(windows));
    let dsdt = put(&dsdt)?;
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    let register = |port: u16| GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    fadt.sleep_control_reg = register(SLEEP_CONTROL);
    fadt.sleep_status_reg = register(SLEEP_CONTROL + 1);
    let fadt = put(&fadt.finalize())?;
    let local = LocalInterruptController::Address(0xfee0_0000);
    let mut madt = MADT::new(OEM, TABLE, 1, local);
    madt.add_structure(ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled));
    madt.add_structure(IoApic::new(0, 0xfec0_0000, 0));
    let madt = put(&madt)?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, put(&xsdt)?).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, base)?;
    Ok(())
}

/// Contents of the DSDT.
fn body(windows: &[AddressRange<Gpa>]) -> Vec<u8> {
    let uncached = AddressSpaceCacheable::NotCacheable;
    let window = |range: &AddressRange<Gpa>| {
        let (first, last) = (range.start().value(), range.end().value() - 1);
        AddressSpace::new_memory(uncached, true, first, last, None)
    };
    let windows: Vec<AddressSpace<u64>> = windows.iter().map(window).collect();
    let buses = AddressSpace::new_bus_number(0_u16, 0xff);
    let config = IO::new(CONFIG_ADDRESS, CONFIG_ADDRESS, 1, 8);
    let mut bridge: Vec<&dyn Aml> = vec![&buses, &config];
    bridge.extend(windows.iter().map(|window| window as &dyn Aml));
    let serial = IO::new(COM1, COM1, 1, 8);
    // Consumer, edge triggered, active high, not shared.
    let interrupt = Interrupt::new(true, true, false, false, COM1_PIN);
    let off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
    let mut bytes = Vec::new();
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut bytes);
    Device::new(
        "\\_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(bridge)),
        ],
    )
    .to_aml_bytes(&mut bytes);
    Device::new(
        "\\_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&serial, &interrupt]),
            ),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}
