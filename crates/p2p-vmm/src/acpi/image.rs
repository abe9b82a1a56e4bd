//! All tables as one block of bytes, ready to be copied into guest memory.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use iommu_group::Address;
use vm_memory::GuestAddress;

use super::dsdt;
use crate::layout::{GpaRange, Layout};
use crate::power::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};

const OEM_ID: [u8; 6] = *b"P2PVMM";
const OEM_TABLE_ID: [u8; 8] = *b"P2PVMM  ";
const OEM_REVISION: u32 = 1;
/// Revision of the DSDT: from 2 on integers have 64 bits.
const DSDT_REVISION: u8 = 6;
/// Bytes of the header that every table except the RSDP has.
const HEADER_BYTES: u32 = 36;
/// Alignment of tables in bytes.
const ALIGN_BYTES: usize = 64;
/// Addresses of the local APIC and the I/O APIC, for every x86 CPU and KVM's I/O APIC.
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
/// IAPC_BOOT_ARCH (ACPI 6.5 §5.2.9.3): no VGA, no CMOS clock; the bits for ISA devices and an i8042 stay clear.
const BOOT_ARCH_NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// The tables could not be built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AcpiError {
    #[error("ACPI tables of {bytes} bytes do not fit into {area}")]
    TooLarge { bytes: usize, area: GpaRange },
}

/// Parameters of the tables.
pub(crate) struct AcpiRequest<'a> {
    /// Guest memory for the tables.
    pub(crate) area: GpaRange,
    pub(crate) layout: &'a Layout,
    pub(crate) cpus: u8,
    /// Whether there is a serial port.
    pub(crate) serial: bool,
}

/// All tables, the RSDP first.
#[derive(Debug)]
pub(crate) struct AcpiImage {
    bytes: Vec<u8>,
    base: GuestAddress,
}

impl AcpiImage {
    /// Builds the tables for an area of guest memory.
    pub(crate) fn build(request: &AcpiRequest<'_>) -> Result<Self, AcpiError> {
        let mut image = Self {
            bytes: Vec::new(),
            base: GuestAddress(request.area.start().value()),
        };
        // The RSDP comes first but has the address of the XSDT, which comes last.
        image.append(&Rsdp::new(OEM_ID, 0));
        let dsdt = image.append(&dsdt_table(request));
        let fadt = image.append(&fadt_table(dsdt));
        let madt = image.append(&madt_table(request.cpus));
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        for table in [fadt, madt] {
            xsdt.add_entry(table.0);
        }
        let xsdt = image.append(&xsdt);
        image.replace_rsdp(&Rsdp::new(OEM_ID, xsdt.0));

        let bytes = image.bytes.len();
        let fits = u64::try_from(bytes).is_ok_and(|len| len <= request.area.len_bytes());
        if fits {
            Ok(image)
        } else {
            let area = request.area;
            Err(AcpiError::TooLarge { bytes, area })
        }
    }

    /// Address of the image in guest memory, which is that of the RSDP.
    pub(crate) fn base(&self) -> GuestAddress {
        self.base
    }

    /// The bytes to copy.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn append(&mut self, table: &dyn Aml) -> GuestAddress {
        let offset = self.bytes.len().next_multiple_of(ALIGN_BYTES);
        self.bytes.resize(offset, 0);
        table.to_aml_bytes(&mut self.bytes);
        // A usize always fits into 64 bits on x86_64.
        GuestAddress(self.base.0 + offset as u64)
    }

    fn replace_rsdp(&mut self, rsdp: &Rsdp) {
        let mut bytes = Vec::with_capacity(Rsdp::len());
        rsdp.to_aml_bytes(&mut bytes);
        for (to, from) in self.bytes.iter_mut().zip(bytes) {
            *to = from;
        }
    }
}

fn dsdt_table(request: &AcpiRequest<'_>) -> Sdt {
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_BYTES,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(dsdt::body(request.layout, request.serial).as_bytes());
    table
}

fn fadt_table(dsdt: GuestAddress) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt.0)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // No power or sleep button in fixed hardware: the power button is a device of the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH_NO_VGA_NO_CMOS.into();
    fadt.reset_reg = io_register(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = io_register(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = io_register(SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

fn io_register(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn madt_table(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC_ADDRESS, 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayoutRequest;

    const AREA: GpaRange = GpaRange::of_constants(0xe_0000, 0x10_0000);

    fn layout() -> Layout {
        Layout::new(&LayoutRequest {
            ram_bytes: 512 << 20,
            limit: 1 << 40,
            holes: &[],
            fixed: &[],
        })
        .unwrap()
    }

    fn image(cpus: u8, serial: bool) -> AcpiImage {
        AcpiImage::build(&AcpiRequest {
            area: AREA,
            layout: &layout(),
            cpus,
            serial,
        })
        .unwrap()
    }

    fn word(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// The table at a guest address, its length taken from its header.
    fn table(image: &AcpiImage, address: u64) -> &[u8] {
        let offset = usize::try_from(address - AREA.start().value()).unwrap();
        let rest = &image.bytes()[offset..];
        let len = u32::from_le_bytes(rest[4..8].try_into().unwrap());
        &rest[..usize::try_from(len).unwrap()]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The tables that the XSDT lists, and the DSDT, by signature.
    fn tables(image: &AcpiImage) -> Vec<(String, Vec<u8>)> {
        let rsdp = &image.bytes()[..Rsdp::len()];
        let xsdt = table(image, word(&rsdp[24..32]));
        let mut found: Vec<&[u8]> = vec![xsdt];
        found.extend(xsdt[36..].chunks(8).map(|entry| table(image, word(entry))));
        let fadt = found[1];
        found.push(table(image, word(&fadt[140..148])));
        found
            .into_iter()
            .map(|table| {
                let signature = String::from_utf8(table[..4].to_vec()).unwrap();
                (signature, table.to_vec())
            })
            .collect()
    }

    #[test]
    fn every_table_is_reachable_and_has_a_correct_checksum() {
        let image = image(2, true);
        assert_eq!(&image.bytes()[..8], b"RSD PTR ");
        assert_eq!(sum(&image.bytes()[..20]), 0);
        assert_eq!(sum(&image.bytes()[..Rsdp::len()]), 0);

        let tables = tables(&image);
        let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["XSDT", "FACP", "APIC", "DSDT"]);
        for (name, bytes) in &tables {
            assert_eq!(sum(bytes), 0, "checksum of {name}");
        }
    }

    #[test]
    fn madt_has_one_enabled_local_apic_per_cpu() {
        for cpus in [1, 2, 16] {
            let image = image(cpus, true);
            let (_, madt) = tables(&image).swap_remove(2);
            let apics: Vec<_> = madt[44..]
                .chunks(8)
                .take_while(|entry| entry[..2] == [0, 8])
                .map(|entry| entry[3])
                .collect();
            assert_eq!(apics, (0..cpus).collect::<Vec<_>>());
        }
    }

    #[test]
    fn host_bridge_has_the_address_of_ecam() {
        let (_, dsdt) = tables(&image(1, true)).pop().unwrap();
        let ecam = u32::try_from(layout().ecam.start().value()).unwrap();
        // Name, its four letters, a double word (ACPI 6.5 §20.2.5.1, §20.2.3).
        let object = [b"\x08_CBA\x0c", &ecam.to_le_bytes()[..]].concat();
        assert!(dsdt.windows(object.len()).any(|bytes| bytes == object));
    }

    #[test]
    fn serial_port_is_described_only_if_there_is_one() {
        let describes = |serial| {
            let (_, dsdt) = tables(&image(1, serial)).pop().unwrap();
            dsdt.windows(4).any(|name| name == b"COM1")
        };
        assert!(describes(true));
        assert!(!describes(false));
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let error = AcpiImage::build(&AcpiRequest {
            area: GpaRange::of_constants(0xe_0000, 0xe_0100),
            layout: &layout(),
            cpus: 1,
            serial: true,
        })
        .unwrap_err();
        assert!(matches!(error, AcpiError::TooLarge { .. }));
    }
}
