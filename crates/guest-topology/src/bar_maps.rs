//! Keeps the mappings of a device's BARs in step with memory decode and with the addresses in the BARs.

use iommu_group::spec::{HEADER_BYTES, bar, header};
use iommu_group::{Address, AddressRange, Bar, Gpa};

/// The first 64 bytes of a function's configuration space, as the guest reads them.
pub type ConfigHeader = [u8; HEADER_BYTES];

/// A range of a BAR that can be mapped: the whole BAR, or a part without the pages that must trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarArea {
    /// Index of the BAR.
    pub bar: u8,
    /// Offset of the area in the BAR in bytes.
    pub offset: u64,
    /// Length of the area in bytes.
    pub len_bytes: u64,
}

/// A change of the mappings of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarChange {
    /// Unmap the area, which is mapped at this range.
    Unmap(BarArea, AddressRange<Gpa>),
    /// Map the area at this range.
    Map(BarArea, AddressRange<Gpa>),
}

/// The mappings of the BARs of one device.
///
/// It decides; the VMM maps and unmaps, wherever a BAR has to be mapped: in a memory slot, and for a member of a P2P
/// domain also in the domain's IOMMU context. A BAR must not be mapped for peers while its device does not decode
/// memory, is being reset or sleeps. The order for each write of the guest to configuration space is therefore:
///
/// 1. [`changes`](Self::changes) for the header [after the write](after_write); make its unmaps. Before a write that
///    resets the function or changes its power state, make the unmaps for a header of zeros.
/// 2. Write to the device.
/// 3. `changes` for the header that the device has now; make all of them.
///
/// Each change that was made is [recorded](Self::made). One that failed is not, and is among the changes of the next
/// call.
#[derive(Clone, Debug)]
pub struct BarMaps {
    bars: Vec<Bar>,
    areas: Vec<(BarArea, Option<AddressRange<Gpa>>)>,
}

impl BarMaps {
    /// The areas that can be mapped, of a device with these BARs. Nothing is mapped yet.
    #[must_use]
    pub fn new(bars: &[Bar], areas: impl IntoIterator<Item = BarArea>) -> Self {
        Self {
            bars: bars.to_vec(),
            areas: areas.into_iter().map(|area| (area, None)).collect(),
        }
    }

    /// The BARs that the device decodes, by index. A BAR outside of the addresses that are forwarded to the device is
    /// not decoded.
    #[must_use]
    pub fn decoded(
        &self,
        config: &ConfigHeader,
        forwarded: &[AddressRange<Gpa>],
    ) -> Vec<(u8, AddressRange<Gpa>)> {
        if word(config, header::COMMAND) & header::COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let range = |bar: &Bar| {
            let range = address_of(bar, config)?;
            let inside = forwarded.iter().any(|window| window.contains(&range));
            inside.then_some((bar.index, range))
        };
        self.bars.iter().filter_map(range).collect()
    }

    /// The changes that bring the mappings in step with a header, unmaps first.
    #[must_use]
    pub fn changes(
        &self,
        config: &ConfigHeader,
        forwarded: &[AddressRange<Gpa>],
    ) -> Vec<BarChange> {
        let decoded = self.decoded(config, forwarded);
        let wanted = |area: &BarArea| {
            let (_, range) = decoded.iter().find(|(bar, _)| *bar == area.bar)?;
            let start = range.start().value().checked_add(area.offset)?;
            AddressRange::new(Gpa::new(start), area.len_bytes).filter(|at| range.contains(at))
        };
        let (mut unmaps, mut maps) = (Vec::new(), Vec::new());
        for (area, mapped) in &self.areas {
            let wanted = wanted(area);
            if *mapped != wanted {
                unmaps.extend(mapped.map(|at| BarChange::Unmap(*area, at)));
                maps.extend(wanted.map(|at| BarChange::Map(*area, at)));
            }
        }
        unmaps.extend(maps);
        unmaps
    }

    /// Records a change that was made.
    pub fn made(&mut self, change: BarChange) {
        let (area, now) = match change {
            BarChange::Unmap(area, _) => (area, None),
            BarChange::Map(area, at) => (area, Some(at)),
        };
        if let Some((_, mapped)) = self.areas.iter_mut().find(|(known, _)| *known == area) {
            *mapped = now;
        }
    }
}

/// The header after a write to configuration space, if all bits of the command register and of BARs are writable.
/// [`BarMaps`] ignores the bits that are not.
#[must_use]
pub fn after_write(mut config: ConfigHeader, offset: u16, data: &[u8]) -> ConfigHeader {
    for (byte, value) in config.iter_mut().skip(offset.into()).zip(data) {
        *byte = *value;
    }
    config
}

/// The range that a BAR's registers select.
fn address_of(info: &Bar, config: &ConfigHeader) -> Option<AddressRange<Gpa>> {
    let at = header::BAR0.checked_add(u16::from(info.index) * 4)?;
    let dword = |at: u16| u32::from(word(config, at)) | u32::from(word(config, at + 2)) << 16;
    let mut address = u64::from(dword(at) & bar::MEMORY_ADDRESS);
    if info.is_64bit() {
        address |= u64::from(dword(at + 4)) << 32;
    }
    let start = Gpa::new(address & !info.size_bytes.saturating_sub(1));
    AddressRange::new(start, info.size_bytes)
}

fn word(config: &ConfigHeader, at: u16) -> u16 {
    let byte = |at: u16| config.get(usize::from(at)).copied().unwrap_or(0);
    u16::from_le_bytes([byte(at), byte(at.saturating_add(1))])
}

#[cfg(test)]
mod tests {
    use iommu_group::Space;

    use super::*;

    const REGISTERS: BarArea = BarArea {
        bar: 0,
        offset: 0,
        len_bytes: 0x2000,
    };
    const MEMORY: BarArea = BarArea {
        bar: 2,
        offset: 0,
        len_bytes: 0x10_0000,
    };
    const ON: u8 = header::COMMAND_MEMORY.to_le_bytes()[0];

    /// A device with a BAR of 16 KiB, of which the second half traps, and a 64-bit one of 1 MiB.
    fn maps() -> BarMaps {
        let bar = |index, space, size_bytes| Bar {
            index,
            space,
            prefetchable: false,
            bus_address: None,
            size_bytes,
        };
        let bars = [
            bar(0, Space::Memory32, 0x4000),
            bar(2, Space::Memory64, 0x10_0000),
        ];
        BarMaps::new(&bars, [REGISTERS, MEMORY])
    }

    fn header(command: u8, bar0: u32, bar2: u64) -> ConfigHeader {
        let header = after_write([0; HEADER_BYTES], header::COMMAND, &[command]);
        let header = after_write(header, header::BAR0, &bar0.to_le_bytes());
        after_write(header, header::BAR0 + 8, &(bar2 | 0xc).to_le_bytes())
    }

    fn forwarded() -> [AddressRange<Gpa>; 2] {
        [
            AddressRange::of_constants(0xc000_0000, 0xd000_0000),
            AddressRange::of_constants(0x10_0000_0000, 0x20_0000_0000),
        ]
    }

    fn at(area: BarArea, start: u64) -> (BarArea, AddressRange<Gpa>) {
        (
            area,
            AddressRange::new(Gpa::new(start), area.len_bytes).unwrap(),
        )
    }

    fn map((area, at): (BarArea, AddressRange<Gpa>)) -> BarChange {
        BarChange::Map(area, at)
    }

    fn unmap((area, at): (BarArea, AddressRange<Gpa>)) -> BarChange {
        BarChange::Unmap(area, at)
    }

    /// Makes all changes for a header, and returns them.
    fn make(maps: &mut BarMaps, header: &ConfigHeader) -> Vec<BarChange> {
        let changes = maps.changes(header, &forwarded());
        for change in &changes {
            maps.made(*change);
        }
        changes
    }

    #[test]
    fn areas_are_mapped_while_memory_decode_is_on() {
        let mut maps = maps();
        let (first, second) = (at(REGISTERS, 0xc000_0000), at(MEMORY, 0x10_0000_0000));
        let on = header(ON, 0xc000_0000, 0x10_0000_0000);
        let off = after_write(on, header::COMMAND, &[0]);
        assert_eq!(make(&mut maps, &off), []);
        assert_eq!(make(&mut maps, &on), [map(first), map(second)]);
        assert_eq!(make(&mut maps, &on), []);
        assert_eq!(make(&mut maps, &off), [unmap(first), unmap(second)]);
        assert_eq!(make(&mut maps, &off), []);
    }

    #[test]
    fn a_moved_bar_is_unmapped_before_anything_is_mapped() {
        let mut maps = maps();
        make(&mut maps, &header(ON, 0xc000_0000, 0x10_0000_0000));
        let changes = make(&mut maps, &header(ON, 0xc000_4000, 0x10_0010_0000));
        let expected = [
            unmap(at(REGISTERS, 0xc000_0000)),
            unmap(at(MEMORY, 0x10_0000_0000)),
            map(at(REGISTERS, 0xc000_4000)),
            map(at(MEMORY, 0x10_0010_0000)),
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_change_that_failed_is_tried_again() {
        let mut maps = maps();
        let on = header(ON, 0xc000_0000, 0);
        assert_eq!(
            maps.changes(&on, &forwarded()),
            [map(at(REGISTERS, 0xc000_0000))]
        );
        assert_eq!(make(&mut maps, &on), [map(at(REGISTERS, 0xc000_0000))]);
        let off = [0; HEADER_BYTES];
        for _ in 0..2 {
            let changes = maps.changes(&off, &forwarded());
            assert_eq!(changes, [unmap(at(REGISTERS, 0xc000_0000))]);
        }
    }

    #[test]
    fn a_bar_outside_of_what_is_forwarded_is_not_mapped() {
        let mut maps = maps();
        // The last is what a guest writes to read the size.
        for (bar0, bar2) in [
            (0xbfff_c000, 0xf_fff0_0000),
            (0xd000_0000, 0),
            (u32::MAX, 0),
        ] {
            assert_eq!(make(&mut maps, &header(ON, bar0, bar2)), []);
        }
    }

    #[test]
    fn bits_below_the_size_of_a_bar_are_ignored() {
        let maps = maps();
        let decoded = maps.decoded(&header(ON, 0xc000_7ff0, 0x10_000f_fff0), &forwarded());
        let starts: Vec<_> = decoded
            .iter()
            .map(|(bar, range)| (*bar, range.start().value()))
            .collect();
        assert_eq!(starts, [(0, 0xc000_4000), (2, 0x10_0000_0000)]);
    }

    #[test]
    fn a_write_beyond_the_header_changes_nothing() {
        let before = header(ON, 0xc000_0000, 0);
        assert_eq!(after_write(before, 0x3e, &[0, 0, 1, 1]), before);
        assert_eq!(after_write(before, 0x1000, &[1; 4]), before);
    }
}
