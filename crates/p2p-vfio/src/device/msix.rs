//! The MSI-X capability and table as the guest programs them (PCI r3.0 §6.8.2).

use iommu_group::spec::msix;

use crate::vmm::MsiMessage;

/// A structure in a BAR: the vector table or the pending bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InBar {
    pub(super) bar: u8,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

impl InBar {
    fn new(offset_and_bar: u32, len_bytes: u64) -> Self {
        let bar = u8::try_from(offset_and_bar & msix::BAR_INDICATOR).unwrap_or(0);
        Self {
            bar,
            offset: u64::from(offset_and_bar & !msix::BAR_INDICATOR),
            len_bytes,
        }
    }

    /// Offset in bytes from the structure's start; `None` if `offset` of BAR `bar` is outside of it.
    pub(super) fn locate(&self, bar: u8, offset: u64) -> Option<u64> {
        let at = offset.checked_sub(self.offset)?;
        (bar == self.bar && at < self.len_bytes).then_some(at)
    }
}

/// Shadow of the capability and the table. VFIO programs the hardware's copies.
#[derive(Debug)]
pub(super) struct Msix {
    offset: u16,
    control: u16,
    entries: Vec<[u32; 4]>,
    pub(super) table: InBar,
    pub(super) pending: InBar,
}

impl Msix {
    /// Creates the shadow of the hardware's capability at `offset` from its message control, table and PBA registers.
    pub(super) fn new(offset: u16, control: u16, table: u32, pending: u32) -> Self {
        let count = u64::from(control & msix::CONTROL_TABLE_SIZE) + 1;
        let mut msix = Self {
            offset,
            control: control & msix::CONTROL_TABLE_SIZE,
            entries: vec![[0; 4]; usize::from(control & msix::CONTROL_TABLE_SIZE) + 1],
            table: InBar::new(table, count * msix::ENTRY_BYTES),
            pending: InBar::new(pending, count.div_ceil(64) * 8),
        };
        msix.reset();
        msix
    }

    /// The byte at a configuration offset; `None` outside of the shadowed bytes.
    pub(super) fn read(&self, offset: u16) -> Option<u8> {
        let at = offset.checked_sub(self.offset + msix::CONTROL)?;
        self.control.to_le_bytes().get(usize::from(at)).copied()
    }

    /// Writes one byte of message control. Returns whether the offset is in the capability.
    pub(super) fn write(&mut self, offset: u16, value: u8) -> bool {
        match offset.checked_sub(self.offset + msix::CONTROL) {
            Some(0) => true,
            Some(1) => {
                let writable = msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK;
                self.control = (self.control & !writable) | (u16::from(value) << 8 & writable);
                true
            }
            _ => false,
        }
    }

    /// Reads the table at `at` bytes from its start. Aligned dwords and qwords are legal.
    pub(super) fn read_table(&self, at: u64, data: &mut [u8]) {
        for (n, chunk) in (0..).zip(data.chunks_mut(4)) {
            let value = self.dword(at + n * 4).copied().unwrap_or(0);
            for (byte, from) in chunk.iter_mut().zip(value.to_le_bytes()) {
                *byte = from;
            }
        }
    }

    /// Writes the table at `at` bytes from its start. An access that is not an aligned dword or qword is dropped,
    /// because its result is undefined.
    pub(super) fn write_table(&mut self, at: u64, data: &[u8]) {
        if !at.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        for (n, chunk) in (0..).zip(data.chunks_exact(4)) {
            let (Some(slot), Ok(bytes)) = (self.dword_mut(at + n * 4), chunk.try_into()) else {
                return;
            };
            *slot = u32::from_le_bytes(bytes);
        }
    }

    fn position(at: u64) -> Option<(usize, usize)> {
        let entry = usize::try_from(at / msix::ENTRY_BYTES).ok()?;
        let word = usize::try_from(at % msix::ENTRY_BYTES / 4).ok()?;
        Some((entry, word))
    }

    fn dword(&self, at: u64) -> Option<&u32> {
        let (entry, word) = Self::position(at)?;
        self.entries.get(entry)?.get(word)
    }

    fn dword_mut(&mut self, at: u64) -> Option<&mut u32> {
        let (entry, word) = Self::position(at)?;
        self.entries.get_mut(entry)?.get_mut(word)
    }

    /// Message of each vector, `None` for a masked one; `None` if MSI-X is off.
    pub(super) fn messages(&self) -> Option<Vec<Option<MsiMessage>>> {
        if self.control & msix::CONTROL_ENABLE == 0 {
            return None;
        }
        let all_masked = self.control & msix::CONTROL_FUNCTION_MASK != 0;
        let message = |[low, high, data, control]: &[u32; 4]| {
            (!all_masked && control & msix::ENTRY_MASKED == 0).then_some(MsiMessage {
                address: u64::from(*high) << 32 | u64::from(*low),
                data: *data,
            })
        };
        Some(self.entries.iter().map(message).collect())
    }

    /// Restores the state after reset: MSI-X off, all vectors masked.
    pub(super) fn reset(&mut self) {
        self.control &= !(msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK);
        self.entries.fill([0, 0, 0, msix::ENTRY_MASKED]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msix() -> Msix {
        Msix::new(0x50, 0x0001, 0x2000, 0x3000 | 1)
    }

    #[test]
    fn table_and_pending_bits_are_where_the_registers_say() {
        let msix = msix();
        assert_eq!(msix.table.locate(0, 0x2010), Some(0x10));
        assert_eq!(msix.table.locate(0, 0x2020), None);
        assert_eq!(msix.table.locate(1, 0x2010), None);
        assert_eq!(msix.pending.locate(1, 0x3007), Some(7));
    }

    #[test]
    fn vectors_deliver_once_unmasked() {
        let mut msix = msix();
        msix.write_table(0x10, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(0x18, &0x45_u64.to_le_bytes());
        assert_eq!(msix.messages(), None);
        assert!(msix.write(0x53, 0x80));
        let expected = MsiMessage {
            address: 0xfee0_0000,
            data: 0x45,
        };
        assert_eq!(msix.messages(), Some(vec![None, Some(expected)]));
        assert!(msix.write(0x53, 0xc0));
        assert_eq!(msix.messages(), Some(vec![None, None]));
    }

    #[test]
    fn table_reads_back() {
        let mut msix = msix();
        msix.write_table(0x04, &7_u32.to_le_bytes());
        let mut data = [0; 8];
        msix.read_table(0x00, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 7, 0, 0, 0]);
        msix.read_table(0x1000, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn odd_accesses_are_dropped() {
        let mut msix = msix();
        msix.write_table(0x02, &[0xff; 4]);
        msix.write_table(0x00, &[0xff; 2]);
        msix.write_table(0x1c, &[0; 8]);
        let mut data = [0; 4];
        msix.read_table(0x00, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn the_vector_count_is_read_only() {
        let mut msix = msix();
        assert!(msix.write(0x52, 0xff) && msix.write(0x53, 0xff));
        assert_eq!((msix.read(0x52), msix.read(0x53)), (Some(1), Some(0xc0)));
    }
}
