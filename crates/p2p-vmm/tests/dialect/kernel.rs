//! A minimal kernel: halts, and halts again after a wake-up.

/// Length of the real-mode part: the boot sector and one more.
const SETUP_BYTES: usize = 1024;
/// Offset of the 64-bit entry in the loaded kernel.
const ENTRY_64: usize = 0x200;
/// `hlt; jmp -3`
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// A bzImage (linux Documentation/arch/x86/boot.rst).
pub(crate) fn image() -> Vec<u8> {
    let mut image = vec![0; SETUP_BYTES + 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &(4096_u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x66]); // jump over the header
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: loaded high
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1, 21]); // relocatable_kernel, min_alignment
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: 64-bit entry
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x1_0000_u32.to_le_bytes()); // init_size
    put(SETUP_BYTES + ENTRY_64, &HALT);
    image
}
