//! Loads a Linux kernel, its initramfs, command line and boot parameters into guest memory.
//!
//! Follows the 64-bit boot protocol (linux 7.2 Documentation/arch/x86/boot.rst).

mod placement;
mod reset_vector;
mod zero_page;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use iommu_group::{Address, Gpa};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader, load_cmdline};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::acpi::AcpiImage;
use crate::layout::{GpaRange, Layout};

use placement::{place_high, place_low};
use reset_vector::RESET_VECTOR;
use zero_page::{BootParameters, E820Error};

/// Guest memory for the tables of [`crate::acpi`], in the BIOS area.
pub(crate) const ACPI_AREA: GpaRange = GpaRange::of_constants(0xe_0000, 0xf_f000);
/// Boot parameters ("zero page").
const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Command line.
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Maximum length of the command line in bytes.
const CMDLINE_MAX_BYTES: u32 = 0x1_0000;
/// Offset of the 64-bit entry point in the loaded kernel.
const ENTRY_64_OFFSET: u64 = 0x200;
/// xloadflags bit 0: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// First protocol version with `init_size` and `pref_address`.
const MIN_PROTOCOL: u16 = 0x20c;
/// Alignment of an initramfs in bytes.
const PAGE_BYTES: u64 = 4096;
/// First address above 32 bits.
const FOUR_GIB: u64 = 1 << 32;

/// A guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a Linux bzImage")]
    NotAKernel { path: PathBuf },
    #[error("cannot load {path}: {reason}")]
    LoadKernel {
        path: PathBuf,
        /// Its text includes all causes.
        reason: linux_loader::loader::Error,
    },
    #[error("{path} is too old or has no 64-bit entry (boot protocol {version:#x})")]
    UnsupportedKernel { path: PathBuf, version: u16 },
    #[error(
        "cannot place {path}: no RAM region has {bytes:#x} contiguous bytes; give the guest more memory"
    )]
    NoRoom { path: PathBuf, bytes: u64 },
    #[error("the command line has {len} bytes, but {path} accepts at most {limit}")]
    CmdlineTooLong {
        path: PathBuf,
        len: usize,
        limit: u32,
    },
    #[error("the command line has invalid characters or is too long")]
    Cmdline(#[from] linux_loader::cmdline::Error),
    #[error("cannot write the command line to guest memory")]
    WriteCmdline(#[source] linux_loader::loader::Error),
    #[error("cannot write {what} to guest memory at {gpa:#x}")]
    Write {
        what: &'static str,
        gpa: u64,
        source: vm_memory::GuestMemoryError,
    },
    #[error(transparent)]
    E820(#[from] E820Error),
}

/// The files and the command line to boot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BootSource<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
}

/// Initial state of the first vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootEntry {
    /// First instruction.
    pub(crate) entry: GuestAddress,
    /// Boot parameters; RSI has their address.
    pub(crate) zero_page: GuestAddress,
}

/// Loads the kernel and everything that it needs to boot.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    acpi: &AcpiImage,
    source: &BootSource<'_>,
) -> Result<BootEntry, LoadError> {
    let kernel = load_kernel(memory, &layout.ram, source.kernel)?;
    let header = kernel.header;
    check_cmdline(source, header.cmdline_size)?;
    let mut cmdline = Cmdline::new(source.cmdline.len() + 2)?;
    if !source.cmdline.is_empty() {
        cmdline.insert_str(source.cmdline)?;
    }
    load_cmdline(memory, CMDLINE, &cmdline).map_err(LoadError::WriteCmdline)?;
    let initramfs = match source.initramfs {
        Some(path) => load_initramfs(memory, &layout.ram, &kernel, path)?,
        None => None,
    };
    write(memory, "ACPI tables", acpi.base(), acpi.bytes())?;
    write(
        memory,
        "reset vector",
        RESET_VECTOR,
        &reset_vector::program(),
    )?;
    let parameters = BootParameters {
        header,
        cmdline: CMDLINE,
        initramfs,
        rsdp: acpi.base(),
        layout,
    };
    let page = zero_page::build(&parameters)?;
    memory
        .write_obj(page, ZERO_PAGE)
        .map_err(|source| LoadError::Write {
            what: "boot parameters",
            gpa: ZERO_PAGE.0,
            source,
        })?;
    Ok(BootEntry {
        entry: GuestAddress(kernel.room.start().value() + ENTRY_64_OFFSET),
        zero_page: ZERO_PAGE,
    })
}

struct LoadedKernel {
    header: setup_header,
    /// Memory that the kernel needs until it has its own memory map.
    room: GpaRange,
}

fn load_kernel(
    memory: &GuestMemoryMmap,
    ram: &[GpaRange],
    path: &Path,
) -> Result<LoadedKernel, LoadError> {
    let mut file = open(path)?;
    let header = read_header(&mut file, path)?;
    let bytes = u64::from(header.init_size);
    let bounds = GpaRange::between(Gpa::new(header.pref_address), Gpa::new(FOUR_GIB));
    let alignment = u64::from(header.kernel_alignment);
    let room = bounds.and_then(|bounds| place_low(ram, bytes, alignment, bounds));
    let room = room.ok_or_else(|| LoadError::NoRoom {
        path: path.to_owned(),
        bytes,
    })?;
    let loaded = BzImage::load(
        memory,
        Some(GuestAddress(room.start().value())),
        &mut file,
        None,
    )
    .map_err(|reason| LoadError::LoadKernel {
        path: path.to_owned(),
        reason,
    })?;
    Ok(LoadedKernel {
        header: loaded.setup_header.unwrap_or(header),
        room,
    })
}

/// The setup header of `file`, checked against the requirements of the 64-bit protocol.
fn read_header(file: &mut File, path: &Path) -> Result<setup_header, LoadError> {
    let header = zero_page::read_setup_header(file).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    let (version, flags) = (header.version, header.xloadflags);
    let is_linux = header.header.to_le_bytes() == *b"HdrS";
    if is_linux && version >= MIN_PROTOCOL && flags & XLF_KERNEL_64 != 0 {
        Ok(header)
    } else if is_linux {
        Err(LoadError::UnsupportedKernel {
            path: path.to_owned(),
            version,
        })
    } else {
        Err(LoadError::NotAKernel {
            path: path.to_owned(),
        })
    }
}

/// Loads the file; `None` if it is empty.
fn load_initramfs(
    memory: &GuestMemoryMmap,
    ram: &[GpaRange],
    kernel: &LoadedKernel,
    path: &Path,
) -> Result<Option<GpaRange>, LoadError> {
    let mut file = open(path)?;
    let read_error = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = file.metadata().map_err(read_error)?.len();
    if bytes == 0 {
        return Ok(None);
    }
    let ceiling = u64::from(kernel.header.initrd_addr_max) + 1;
    let bounds = GpaRange::between(kernel.room.end(), Gpa::new(ceiling));
    let place = bounds.and_then(|bounds| place_high(ram, bytes, PAGE_BYTES, bounds));
    let place = place.ok_or_else(|| LoadError::NoRoom {
        path: path.to_owned(),
        bytes,
    })?;
    let len = usize::try_from(bytes).map_err(|_| read_error(io::ErrorKind::FileTooLarge.into()))?;
    memory
        .read_exact_volatile_from(GuestAddress(place.start().value()), &mut file, len)
        .map_err(|source| LoadError::Write {
            what: "initramfs",
            gpa: place.start().value(),
            source,
        })?;
    Ok(Some(place))
}

fn check_cmdline(source: &BootSource<'_>, kernel_limit: u32) -> Result<(), LoadError> {
    let limit = kernel_limit.min(CMDLINE_MAX_BYTES - 1);
    let len = source.cmdline.len();
    match u32::try_from(len) {
        Ok(bytes) if bytes <= limit => Ok(()),
        _ => Err(LoadError::CmdlineTooLong {
            path: source.kernel.to_owned(),
            len,
            limit,
        }),
    }
}

fn open(path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|source| LoadError::Open {
        path: path.to_owned(),
        source,
    })
}

fn write(
    memory: &GuestMemoryMmap,
    what: &'static str,
    gpa: GuestAddress,
    bytes: &[u8],
) -> Result<(), LoadError> {
    memory
        .write_slice(bytes, gpa)
        .map_err(|source| LoadError::Write {
            what,
            gpa: gpa.0,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_longer_than_the_kernel_takes_is_refused() {
        let source = BootSource {
            kernel: Path::new("/k"),
            initramfs: None,
            cmdline: "0123456789",
        };
        assert!(check_cmdline(&source, 10).is_ok());
        let error = check_cmdline(&source, 9).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the command line has 10 bytes, but /k accepts at most 9"
        );
    }

    #[test]
    fn file_that_is_not_a_kernel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no-kernel");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        let error = read_header(&mut open(&path).unwrap(), &path).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("no-kernel is not a Linux bzImage")
        );
    }

    #[test]
    fn file_that_is_too_short_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("short");
        std::fs::write(&path, b"short").unwrap();
        let error = read_header(&mut open(&path).unwrap(), &path).unwrap_err();
        assert!(matches!(error, LoadError::Read { .. }), "{error}");
    }
}
