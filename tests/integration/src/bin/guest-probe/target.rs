//! Targets of a device's DMA in another device.

use std::io;
use std::path::Path;

use lab::report::Access;

use crate::edu::{Edu, LIVENESS};
use crate::mapping::{Mapping, PAGE};
use crate::pci::Function;

/// QEMU's `ivshmem`, whose BAR 2 is plain memory (QEMU docs/specs/ivshmem-spec.rst).
const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x1110;
const MEMORY_BAR: usize = 2;

/// Offset of the words that devices read; the words that they write are at the start.
const READ: usize = 0x800;

/// A function with memory in a BAR.
pub(crate) struct MemoryDevice {
    bdf: String,
    /// Guest-physical address of the memory.
    start: u64,
    memory: Mapping,
}

impl MemoryDevice {
    /// Finds every memory device in the guest, in address order.
    pub(crate) fn find_all() -> io::Result<Vec<Self>> {
        Function::find(Path::new("/sys"), VENDOR, DEVICE)?
            .iter()
            .map(Self::open)
            .collect()
    }

    fn open(function: &Function) -> io::Result<Self> {
        function.enable()?;
        let (start, _, file) = function.bar(MEMORY_BAR)?;
        Ok(Self {
            bdf: function.bdf.clone(),
            start,
            memory: Mapping::of_file(&file, PAGE)?,
        })
    }
}

/// A register that returns the inverse of the value written to it, or plain memory.
pub(crate) enum Target<'a> {
    Engine(&'a Edu),
    Memory(&'a MemoryDevice),
}

impl Target<'_> {
    pub(crate) fn bdf(&self) -> &str {
        match self {
            Self::Engine(edu) => &edu.bdf,
            Self::Memory(device) => &device.bdf,
        }
    }

    /// Offset of the word of an initiator, by its number, in bytes. A register is shared by all initiators.
    pub(crate) fn place(&self, access: Access, slot: usize) -> usize {
        match (self, access) {
            (Self::Engine(_), _) => LIVENESS as usize,
            (Self::Memory(_), Access::Write) => slot * size_of::<u32>(),
            (Self::Memory(_), Access::Read) => READ + slot * size_of::<u32>(),
        }
    }

    /// Bus address of an offset.
    pub(crate) fn address(&self, place: usize) -> u64 {
        let start = match self {
            Self::Engine(edu) => edu.bar0,
            Self::Memory(device) => device.start,
        };
        start.saturating_add(place as u64)
    }

    /// Value read after `word` was written.
    pub(crate) fn shown(&self, word: u32) -> u32 {
        match self {
            Self::Engine(_) => !word,
            Self::Memory(_) => word,
        }
    }

    /// Writes a word by the processor.
    pub(crate) fn set(&self, place: usize, word: u32) -> io::Result<()> {
        match self {
            Self::Engine(edu) => edu.set_liveness(word),
            Self::Memory(device) => device.memory.write_u32(place, word),
        }
    }

    /// Reads a word by the processor.
    pub(crate) fn get(&self, place: usize) -> io::Result<u32> {
        match self {
            Self::Engine(edu) => edu.liveness(),
            Self::Memory(device) => device.memory.read_u32(place),
        }
    }
}
