//! Variable-length information structures of VFIO, with their capability chains.

#![allow(
    unsafe_code,
    reason = "information ioctls fill a buffer of variable length"
)]

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::ioctl_with_mut_ptr;

use super::check;

/// Limit above what any kernel needs, so that an invalid length is refused.
const MAX_BYTES: usize = 64 << 10;

/// An information structure filled by the kernel. All of them begin with `argsz` and `flags`.
#[derive(Debug)]
pub(super) struct Info {
    bytes: Vec<u8>,
}

impl Info {
    /// Performs the ioctl `request` on `fd`. `fixed` is the structure without capabilities; its first dword is set to
    /// the buffer's length, the rest is the input for the kernel.
    pub(super) fn get(
        fd: &impl AsRawFd,
        request: libc::c_ulong,
        fixed: &[u32],
    ) -> io::Result<Self> {
        let mut len_bytes = fixed.len() * 4;
        loop {
            let info = Self::get_once(fd, request, fixed, len_bytes)?;
            let wanted = info.field32(0).map_or(0, |argsz| argsz as usize);
            if wanted <= info.bytes.len() || wanted > MAX_BYTES {
                return Ok(info);
            }
            len_bytes = wanted;
        }
    }

    fn get_once(
        fd: &impl AsRawFd,
        request: libc::c_ulong,
        fixed: &[u32],
        len_bytes: usize,
    ) -> io::Result<Self> {
        // Whole qwords, so that the buffer has the alignment of the structures.
        let mut buffer = vec![0_u64; len_bytes.div_ceil(8)];
        let argsz = u32::try_from(buffer.len() * 8).unwrap_or(u32::MAX);
        let words = std::iter::once(argsz).chain(fixed.iter().copied().skip(1));
        let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
        for (qword, chunk) in buffer.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            for (to, from) in padded.iter_mut().zip(chunk) {
                *to = *from;
            }
            *qword = u64::from_ne_bytes(padded);
        }
        // SAFETY: the kernel reads and writes at most `argsz` bytes, the length of the buffer.
        check(unsafe { ioctl_with_mut_ptr(fd, request, buffer.as_mut_ptr()) })?;
        let bytes = buffer.iter().flat_map(|qword| qword.to_ne_bytes());
        Ok(Self {
            bytes: bytes.collect(),
        })
    }

    #[cfg(test)]
    pub(super) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    pub(super) fn field32(&self, at: usize) -> Option<u32> {
        let field = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(field.try_into().ok()?))
    }

    pub(super) fn field64(&self, at: usize) -> Option<u64> {
        let field = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(field.try_into().ok()?))
    }

    /// `count` pairs of qwords from offset `at` on; `None` beyond the end of the structure.
    pub(super) fn pairs(&self, at: usize, count: u32) -> Option<Vec<(u64, u64)>> {
        let count = usize::try_from(count).ok()?;
        (0..count)
            .map(|n| {
                let at = n.checked_mul(16)?.checked_add(at)?;
                Some((self.field64(at)?, self.field64(at + 8)?))
            })
            .collect()
    }

    /// Offset of the capability `id` in the chain whose start is in the field at `first`.
    pub(super) fn capability(&self, first: usize, id: u32) -> Option<usize> {
        let mut at = self.field32(first)? as usize;
        while at != 0 {
            if self.field32(at)? & 0xffff == id {
                return Some(at);
            }
            let next = self.field32(at + 4)? as usize;
            // The kernel appends capabilities, so a chain that goes backwards is invalid.
            at = (next > at).then_some(next)?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(words: &[u32]) -> Info {
        Info::of_bytes(words.iter().flat_map(|w| w.to_ne_bytes()).collect())
    }

    #[test]
    fn capabilities_are_found_along_the_chain() {
        let info = info(&[32, 0, 0, 16, 0x1_0007, 24, 0x1_0003, 0]);
        assert_eq!(info.capability(12, 7), Some(16));
        assert_eq!(info.capability(12, 3), Some(24));
        assert_eq!(info.capability(12, 1), None);
    }

    #[test]
    fn broken_chains_end() {
        assert_eq!(info(&[24, 0, 0, 16, 7, 16]).capability(12, 3), None);
        assert_eq!(info(&[24, 0, 0, 16, 7, 4000]).capability(12, 3), None);
        assert_eq!(info(&[16, 0, 0, 0]).capability(12, 3), None);
        assert_eq!(info(&[]).capability(12, 3), None);
    }

    #[test]
    fn pairs_end_with_the_structure() {
        let info = info(&[1, 0, 2, 0, 3, 0, 4, 0]);
        assert_eq!(info.pairs(0, 2), Some(vec![(1, 2), (3, 4)]));
        assert_eq!(info.pairs(0, 3), None);
        assert_eq!(info.pairs(0, u32::MAX), None);
    }
}
