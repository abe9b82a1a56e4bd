//! Loads Linux by the 32-bit boot protocol (linux 7.2 Documentation/arch/x86/boot.rst), and creates the vCPU.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use iommu_group::{AddressRange, Gpa};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader, load_cmdline};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use crate::{Result, Vm, acpi};

/// Boot parameters, command line and ACPI tables.
const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// Offset of the setup header in a bzImage.
const SETUP_HEADER: u64 = 0x1f1;
/// Usable memory below the BIOS area, and above it.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;
const E820_RAM: u32 = 1;

/// IA32_MTRR_DEF_TYPE: MTRRs on, default type write-back.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// The files and the command line to boot.
#[derive(Clone, Debug)]
pub struct BootSource {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
}

impl BootSource {
    /// The first three arguments of the program: a bzImage, an initial file system, a kernel command line. Returns the
    /// other arguments too.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn of_arguments() -> Result<(Self, Vec<String>)> {
        let mut words = std::env::args().skip(1);
        let mut word = || {
            words
                .next()
                .ok_or("usage: KERNEL INITRAMFS CMDLINE DEVICE…")
        };
        let source = Self {
            kernel: word()?.into(),
            initramfs: word()?.into(),
            cmdline: word()?,
        };
        Ok((source, words.collect()))
    }
}

/// Number of guest-physical address bits (Intel SDM vol. 2A, CPUID leaf 0x8000_0008).
pub(crate) fn address_bits(kvm: &Kvm) -> Result<u8> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut leaves = supported.as_slice().iter();
    let sizes = leaves.find(|leaf| leaf.function == 0x8000_0008);
    Ok(sizes.map_or(36, |leaf| leaf.eax.to_le_bytes()[0]))
}

/// Loads the guest. Returns the vCPU, ready to run.
pub(crate) fn load(vm: &Vm, source: &BootSource, windows: &[AddressRange<Gpa>]) -> Result<VcpuFd> {
    let memory = &vm.memory;
    let mut kernel = File::open(&source.kernel)?;
    let mut header = setup_header::default();
    kernel.read_exact_at(header.as_mut_slice(), SETUP_HEADER)?;
    let at = Some(GuestAddress(header.pref_address));
    let loaded = BzImage::load(memory, at, &mut kernel, None)?;
    let mut cmdline = Cmdline::new(source.cmdline.len() + 2)?;
    cmdline.insert_str(&source.cmdline)?;
    load_cmdline(memory, CMDLINE, &cmdline)?;
    acpi::write(memory, ACPI, windows)?;

    let mut initramfs = File::open(&source.initramfs)?;
    let len = initramfs.seek(SeekFrom::End(0))?;
    initramfs.rewind()?;
    let ram_end = memory.last_addr().0 + 1;
    let place = ram_end
        .checked_sub(len)
        .ok_or("the initramfs is too large")?
        & !0xfff;
    memory.read_exact_volatile_from(GuestAddress(place), &mut initramfs, usize::try_from(len)?)?;

    let mut page = boot_params {
        hdr: loaded.setup_header.unwrap_or(header),
        acpi_rsdp_addr: ACPI.0,
        ..Default::default()
    };
    page.hdr.type_of_loader = 0xff;
    page.hdr.cmd_line_ptr = u32::try_from(CMDLINE.0)?;
    page.hdr.ramdisk_image = u32::try_from(place)?;
    page.hdr.ramdisk_size = u32::try_from(len)?;
    let ram = |start: u64, end: u64| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: E820_RAM,
    };
    let mut map = page.e820_table;
    map[0] = ram(0, LOW_END);
    map[1] = ram(HIGH_START, ram_end);
    page.e820_table = map;
    page.e820_entries = 2;
    memory.write_obj(page, ZERO_PAGE)?;
    vcpu(vm, loaded.kernel_load.0)
}

/// The vCPU, in 32-bit mode without paging, at the kernel's first instruction.
fn vcpu(vm: &Vm, entry: u64) -> Result<VcpuFd> {
    let vcpu = vm.fd.create_vcpu(0)?;
    // KVM has no speed for vCPUs if it was loaded before the host had measured the time-stamp counter finally.
    if vcpu.get_tsc_khz()? == 0 {
        vcpu.set_tsc_khz(0)?;
    }
    vcpu.set_cpuid2(&cpuid(&vm.kvm)?)?;
    let (index, data) = MTRR_DEF_TYPE;
    let msr = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    vcpu.set_msrs(&Msrs::from_entries(&[msr]).map_err(|error| format!("{error:?}"))?)?;
    let mut sregs = vcpu.get_sregs()?;
    let flat = |selector, type_| kvm_segment {
        selector,
        type_,
        limit: u32::MAX,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0x10, 0b1011);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *segment = flat(0x18, 0b0011);
    }
    // Protected mode.
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: ZERO_PAGE.0,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(vcpu)
}

/// What KVM supports, for one vCPU with number 0.
fn cpuid(kvm: &Kvm) -> Result<CpuId> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut leaves = supported.as_slice().to_vec();
    // The host's topology.
    leaves.retain(|leaf| !matches!(leaf.function, 0xb | 0x1f));
    for leaf in &mut leaves {
        match leaf.function {
            1 => {
                // One processor with APIC ID 0, below a hypervisor.
                leaf.ebx = leaf.ebx & 0xffff | 1 << 16;
                leaf.edx &= !(1 << 28);
                leaf.ecx |= 1 << 31;
                if kvm.check_extension(Cap::TscDeadlineTimer) {
                    leaf.ecx |= 1 << 24;
                }
            }
            // Core and thread numbers of AMD's processors.
            0x8000_0008 => leaf.ecx &= !0xf0ff,
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (0, 0, 0),
            _ => {}
        }
    }
    CpuId::from_entries(&leaves).map_err(|error| format!("{error:?}").into())
}
