//! NVMe drives that read and write each other's controller memory buffer, by nothing but the guest's kernel.
//!
//! The kernel publishes a drive's buffer as P2P memory; a page of it is the target of an O_DIRECT transfer of
//! another drive. The kernel refuses that with `EINVAL` unless it finds the two close enough
//! (linux 7.2 drivers/pci/p2pdma.c).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use lab::report::{Access, Finding, Outcome};

use crate::mapping::{Mapping, PAGE};

/// Where a drive is written, in bytes from its start: behind what is read.
const WRITTEN: u64 = 8192;

/// A drive, and the buffer of its controller if the kernel published one.
struct Drive {
    bdf: String,
    block: File,
    memory: Option<Mapping>,
}

/// Lets every drive transfer a block from and to the buffer of every other.
pub(crate) fn run(print: &mut dyn FnMut(&Finding) -> io::Result<()>) -> io::Result<bool> {
    let drives = find(Path::new("/sys"), Path::new("/dev"))?;
    let mut all_good = !drives.is_empty();
    for (number, memory) in (1_u32..).zip(&drives) {
        for drive in drives.iter().filter(|drive| drive.bdf != memory.bdf) {
            for access in [Access::Read, Access::Write] {
                let error = transfer(memory, drive, access, number).err();
                all_good &= error.is_none();
                print(&Finding::Transfer {
                    memory: memory.bdf.clone(),
                    drive: drive.bdf.clone(),
                    access,
                    result: error.as_ref().map_or(Outcome::Ok, |_| Outcome::Nothing),
                    error: error.map(|error| error.to_string()),
                })?;
            }
        }
    }
    Ok(all_good)
}

/// `Read` brings the drive's first block into the peer's memory and compares; `Write` stores a block that says whose
/// memory it comes from: what arrived is looked at from outside.
fn transfer(memory: &Drive, drive: &Drive, access: Access, number: u32) -> io::Result<()> {
    let page = memory.memory.as_ref();
    let page = page.ok_or_else(|| io::Error::other("the kernel publishes no P2P memory"))?;
    match access {
        Access::Read => {
            let expected = Mapping::locked_page()?;
            expected.read_file(&drive.block, 0)?;
            fill(page, 0)?;
            page.read_file(&drive.block, 0)?;
            for offset in (0..PAGE).step_by(8) {
                if page.read_u64(offset)? != expected.read_u64(offset)? {
                    return Err(io::Error::other(format!("differs at byte {offset}")));
                }
            }
            Ok(())
        }
        Access::Write => {
            fill(page, number)?;
            page.write_file(&drive.block, WRITTEN)
        }
    }
}

/// `P2P` and the number in every 64-bit word.
fn fill(page: &Mapping, number: u32) -> io::Result<()> {
    let word = 0x0050_3250_0000_0000 | u64::from(number);
    (0..PAGE)
        .step_by(8)
        .try_for_each(|offset| page.write_u64(offset, word))
}

/// Every drive with its first namespace, in address order.
fn find(sysfs: &Path, dev: &Path) -> io::Result<Vec<Drive>> {
    let mut drives = Vec::new();
    for entry in fs::read_dir(sysfs.join("class/nvme"))? {
        let entry = entry?;
        let device = fs::canonicalize(entry.path().join("device"))?;
        let bdf = device.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{}n1", entry.file_name().to_string_lossy());
        drives.push(Drive {
            bdf: bdf.into_owned(),
            block: OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
                .open(dev.join(name))?,
            memory: match OpenOptions::new()
                .read(true)
                .write(true)
                .open(device.join("p2pmem/allocate"))
            {
                Ok(file) => Some(Mapping::of_file(&file, PAGE)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
        });
    }
    drives.sort_by(|a, b| a.bdf.cmp(&b.bdf));
    Ok(drives)
}
