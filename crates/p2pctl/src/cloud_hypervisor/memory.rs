//! cloud-hypervisor's memory map on x86-64: guest RAM and BARs.

use std::ops::RangeInclusive;

use super::command_line::CommandLine;
use super::option_list::OptionList;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// End of RAM below 4 GiB and start of 32-bit BARs.
const RAM_32_END: u64 = 3 * GIB;
/// Size of the range for 32-bit BARs.
const BARS_32_BYTES: u64 = 640 * MIB;
const FOUR_GIB: u64 = 4 * GIB;
/// Alignment of hotplugged memory, applied once per region.
const PLUG_ALIGN: u64 = 128 * MIB;
/// Default size without `--memory`.
const DEFAULT_BYTES: u64 = 512 * MIB;
/// Default physical address bits of a guest without `max_phys_bits`, if the CPU has that many.
pub(crate) const DEFAULT_BITS: u8 = 46;

/// Guest memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestMemory {
    /// Boot memory.
    pub(crate) boot: u64,
    /// Hotpluggable memory, with the loss by alignment.
    pub(crate) plugged: u64,
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self {
            boot: DEFAULT_BYTES,
            plugged: 0,
        }
    }
}

impl GuestMemory {
    /// Parses `--memory` and `--memory-zone`; `None` if a size is invalid.
    pub(crate) fn from_command_line(line: &CommandLine) -> Option<Self> {
        let own = line.values("--memory");
        let mut memory = match own.as_slice() {
            [] => Self::default(),
            _ => Self {
                boot: 0,
                plugged: 0,
            },
        };
        for value in own.into_iter().chain(line.values("--memory-zone")) {
            let list = OptionList::parse(&value.text).ok()?;
            let size = |key| match list.get(key) {
                None => Some(None),
                Some(text) => bytes(&text).map(Some),
            };
            memory = memory.and(size("size")?.unwrap_or(0), size("hotplug_size")?)?;
        }
        Some(memory)
    }

    /// Adds a region with this boot size and hotpluggable size.
    pub(super) fn and(self, boot: u64, plugged: Option<u64>) -> Option<Self> {
        let plugged = match plugged {
            None => 0,
            Some(bytes) => bytes.checked_add(2 * PLUG_ALIGN)?,
        };
        Some(Self {
            boot: self.boot.checked_add(boot)?,
            plugged: self.plugged.checked_add(plugged)?,
        })
    }

    /// Possible addresses of guest memory. Hotplugged memory is always above 4 GiB.
    pub(crate) fn ranges(self) -> Vec<RangeInclusive<u64>> {
        let low = self.boot.min(RAM_32_END);
        let high = (self.boot - low).saturating_add(self.plugged);
        [(0, low), (FOUR_GIB, high)]
            .into_iter()
            .filter(|(_, len)| *len > 0)
            .map(|(start, len)| start..=start.saturating_add(len - 1))
            .collect()
    }

    /// Possible addresses of 64-bit BARs with this number of physical address bits; `None` if there is no space.
    pub(crate) fn bars_64(self, bits: u8) -> Option<RangeInclusive<u64>> {
        let start = self
            .ranges()
            .last()
            .map_or(FOUR_GIB, |ram| ram.end().saturating_add(1).max(FOUR_GIB));
        let end = 1_u64
            .checked_shl(u32::from(bits))
            .map_or(u64::MAX, |end| end - 1);
        (start < end).then_some(start..=end)
    }
}

/// Possible addresses of 32-bit BARs.
pub(crate) fn bars_32() -> RangeInclusive<u64> {
    RAM_32_END..=RAM_32_END + BARS_32_BYTES - 1
}

/// The intersection of two ranges.
pub(crate) fn overlap(
    a: &RangeInclusive<u64>,
    b: &RangeInclusive<u64>,
) -> Option<RangeInclusive<u64>> {
    let both = *a.start().max(b.start())..=*a.end().min(b.end());
    (!both.is_empty()).then_some(both)
}

/// Parses `512M`, `1G`, `4096K` or a number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) if text.ends_with('K') => (number, 10),
        Some(number) if text.ends_with('M') => (number, 20),
        Some(number) => (number, 30),
        None => (text, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(words: &[&str]) -> Option<GuestMemory> {
        let words = ["ch"].iter().chain(words).map(|word| (*word).into());
        GuestMemory::from_command_line(&CommandLine::new(words.collect()))
    }

    #[test]
    fn memory_is_below_3_gib_and_above_4() {
        assert_eq!(memory(&[]).unwrap().ranges(), [0..=512 * MIB - 1]);
        let large = memory(&["--memory", "size=5G,shared=on"]).unwrap();
        assert_eq!(
            large.ranges(),
            [0..=RAM_32_END - 1, FOUR_GIB..=FOUR_GIB + 2 * GIB - 1]
        );
        assert_eq!(large.bars_64(39), Some(6 * GIB..=(1 << 39) - 1));
        assert_eq!(large.bars_64(32), None);
    }

    #[test]
    fn zones_add_up_and_plugged_memory_is_above_4_gib() {
        let zones = [
            "--memory=size=0",
            "--memory-zone",
            "id=a,size=1G",
            "id=b,size=1G,hotplug_size=1G",
        ];
        let zones = memory(&zones).unwrap();
        assert_eq!(zones.boot, 2 * GIB);
        assert_eq!(zones.ranges()[1], FOUR_GIB..=FOUR_GIB + GIB + 256 * MIB - 1);
    }

    #[test]
    fn what_is_no_size_is_not_guessed() {
        assert_eq!(memory(&["--memory", "size=lots"]), None);
        assert_eq!(memory(&["--memory", "size=99999999999G"]), None);
        assert_eq!(memory(&["--memory", "size=[1"]), None);
    }

    #[test]
    fn ranges_overlap_or_do_not() {
        assert_eq!(overlap(&(0..=9), &(9..=20)), Some(9..=9));
        assert_eq!(overlap(&(0..=9), &(10..=20)), None);
    }
}
