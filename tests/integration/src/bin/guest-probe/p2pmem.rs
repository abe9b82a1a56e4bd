//! DMA of NVMe drives to and from each other's controller memory buffer, through the guest's kernel only.
//!
//! The kernel publishes a drive's buffer as P2P memory; a page of it is the target of an O_DIRECT transfer of another
//! drive. The kernel refuses the transfer with `EINVAL` unless it finds the two close enough (linux 7.2
//! drivers/pci/p2pdma.c) or runs on an AMD Zen CPU. There it accepts any pair, and the host's IOMMU blocks the
//! transfers that are not allowed. The drives do not report this: only the data shows whether it arrived.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use lab::report::{Access, Finding, Outcome};

use crate::mapping::{Mapping, PAGE};

/// Offset on a drive, in bytes, of the block that is written, after the block that is read.
const WRITTEN: u64 = 8192;

/// A drive, and its controller's buffer if the kernel published one.
struct Drive {
    bdf: String,
    block: File,
    memory: Option<Mapping>,
}

/// Makes every drive transfer a block from and to the buffer of every other drive.
pub(crate) fn run(print: &mut dyn FnMut(&Finding) -> io::Result<()>) -> io::Result<bool> {
    let drives = find(Path::new("/sys"), Path::new("/dev"))?;
    let mut all_good = !drives.is_empty();
    for (number, memory) in (1_u32..).zip(&drives) {
        for drive in drives.iter().filter(|drive| drive.bdf != memory.bdf) {
            for access in [Access::Read, Access::Write] {
                let (result, error) = match &memory.memory {
                    Some(page) => transfer(page, &drive.block, access, number, dma)?,
                    None => {
                        let text = "the kernel publishes no P2P memory";
                        (Outcome::Nothing, Some(text.to_owned()))
                    }
                };
                all_good &= result == Outcome::Ok;
                print(&Finding::Transfer {
                    memory: memory.bdf.clone(),
                    drive: drive.bdf.clone(),
                    access,
                    result,
                    error,
                })?;
            }
        }
    }
    Ok(all_good)
}

/// DMA of the drive between a block and its peer's memory.
fn dma(page: &Mapping, block: &File, access: Access) -> io::Result<()> {
    match access {
        Access::Read => page.read_file(block, 0),
        Access::Write => page.write_file(block, WRITTEN),
    }
}

/// Makes the transfer with `dma` and checks, by the processor and through ordinary memory, what arrived. `Read`
/// transfers the drive's first block into the peer's memory. `Write` stores a block whose contents identify the source
/// memory. A transfer that the kernel refuses is `Nothing`; one that ended without an error and did not arrive is
/// `Lost`.
fn transfer(
    page: &Mapping,
    block: &File,
    access: Access,
    number: u32,
    dma: impl FnOnce(&Mapping, &File, Access) -> io::Result<()>,
) -> io::Result<(Outcome, Option<String>)> {
    let ordinary = Mapping::locked_page()?;
    match access {
        Access::Read => {
            ordinary.read_file(block, 0)?;
            fill(page, 0)?;
        }
        Access::Write => {
            fill(page, number)?;
            // Data that an earlier run left would be mistaken for data that arrives now.
            ordinary.read_file(block, WRITTEN)?;
            if difference(page, &ordinary)?.is_none() {
                Mapping::locked_page()?.write_file(block, WRITTEN)?;
            }
        }
    }
    if let Err(error) = dma(page, block, access) {
        return Ok((Outcome::Nothing, Some(error.to_string())));
    }
    if access == Access::Write {
        ordinary.read_file(block, WRITTEN)?;
    }
    Ok(match difference(page, &ordinary)? {
        None => (Outcome::Ok, None),
        Some(offset) => (Outcome::Lost, Some(format!("differs at byte {offset}"))),
    })
}

/// Offset of the first difference between two pages.
fn difference(left: &Mapping, right: &Mapping) -> io::Result<Option<usize>> {
    for offset in (0..PAGE).step_by(8) {
        if left.read_u64(offset)? != right.read_u64(offset)? {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// Writes `P2P` and the number to every 64-bit word.
fn fill(page: &Mapping, number: u32) -> io::Result<()> {
    let word = 0x0050_3250_0000_0000 | u64::from(number);
    (0..PAGE)
        .step_by(8)
        .try_for_each(|offset| page.write_u64(offset, word))
}

/// Finds every drive with its first namespace, in address order.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A drive that contains only bytes 0xa0.
    fn drive() -> File {
        let block = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&block, &[0xa0; 16384], 0).unwrap();
        block
    }

    fn outcome(
        block: &File,
        access: Access,
        dma: impl FnOnce(&Mapping, &File, Access) -> io::Result<()>,
    ) -> Outcome {
        let page = Mapping::locked_page().unwrap();
        transfer(&page, block, access, 1, dma).unwrap().0
    }

    #[test]
    fn what_arrives_is_found() {
        for access in [Access::Read, Access::Write] {
            assert_eq!(outcome(&drive(), access, dma), Outcome::Ok, "{access:?}");
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_no_loss() {
        let refused = |_: &Mapping, _: &File, _| Err(io::ErrorKind::InvalidInput.into());
        for access in [Access::Read, Access::Write] {
            let result = outcome(&drive(), access, refused);
            assert_eq!(result, Outcome::Nothing, "{access:?}");
        }
    }

    #[test]
    fn what_ends_well_and_does_not_arrive_is_lost_also_where_it_arrived_before() {
        let block = drive();
        for access in [Access::Read, Access::Write] {
            assert_eq!(outcome(&block, access, dma), Outcome::Ok, "{access:?}");
            let result = outcome(&block, access, |_, _, _| Ok(()));
            assert_eq!(result, Outcome::Lost, "{access:?}");
        }
    }
}
