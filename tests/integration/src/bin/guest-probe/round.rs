//! One round of checks over all devices: every engine accesses memory, every other engine and every memory device.

use std::io;

use lab::report::{Access, Finding, Outcome};

use crate::edu::{Edu, Stuck};
use crate::mapping::Mapping;
use crate::target::{MemoryDevice, Target};

/// Indices of the words in the page that devices read and write.
pub(crate) const SOURCE: usize = 0;
const TARGET: usize = 64;

/// Value of the target before a transfer, which shows whether any data arrived.
const SENTINEL: u32 = 0x5e41_71e1;

/// Counts of one round.
#[derive(Default)]
pub(crate) struct Round {
    devices: usize,
    checks: usize,
    ok: usize,
}

type Print<'a> = dyn FnMut(&Finding) -> io::Result<()> + 'a;

impl Round {
    /// Checks every device against memory and against every other device.
    pub(crate) fn run(&mut self, print: &mut Print<'_>) -> io::Result<()> {
        let devices = Edu::find_all()?;
        self.devices = devices.len();
        for device in &devices {
            print(&Finding::Device {
                bdf: device.bdf.clone(),
                bar0: format!("{:#x}", device.bar0),
            })?;
        }
        let page = Page::new()?;
        for (number, device) in (1_u32..).zip(&devices) {
            let word = 0xa110_0000 | number;
            let (result, read) = memory(device, &page, word)?;
            self.count(result);
            print(&Finding::Memory {
                device: device.bdf.clone(),
                result,
                wrote: hex(word),
                read: hex(read),
            })?;
        }
        let memories = MemoryDevice::find_all()?;
        let targets: Vec<Target<'_>> = devices
            .iter()
            .map(Target::Engine)
            .chain(memories.iter().map(Target::Memory))
            .collect();
        // Every device is an initiator once before any is again, because the host's kernel reports only the first
        // faults.
        for distance in 1..targets.len() {
            for (i, initiator) in devices.iter().enumerate() {
                let t = (i + distance) % targets.len();
                let Some(target) = targets.get(t) else {
                    continue;
                };
                let pair = Pair {
                    initiator,
                    target,
                    slot: i + 1,
                };
                for access in [Access::Write, Access::Read] {
                    let word = pair.word(t + 1)?;
                    let (result, read) = match access {
                        Access::Write => pair.write(&page, word)?,
                        Access::Read => pair.read(&page, word)?,
                    };
                    self.count(result);
                    print(&Finding::Peer {
                        initiator: initiator.bdf.clone(),
                        target: target.bdf().to_owned(),
                        access,
                        result,
                        wrote: hex(word),
                        read: hex(read),
                        expected: hex(target.shown(word)),
                    })?;
                }
            }
        }
        page.check_place()
    }

    fn count(&mut self, outcome: Outcome) {
        self.checks = self.checks.saturating_add(1);
        if outcome == Outcome::Ok {
            self.ok = self.ok.saturating_add(1);
        }
    }

    /// Whether every check succeeded and at least one was made.
    pub(crate) fn is_good(&self, count: Option<usize>) -> bool {
        self.checks > 0 && self.ok == self.checks && count.is_none_or(|count| count == self.devices)
    }

    pub(crate) fn summary(&self, error: Option<String>) -> Finding {
        Finding::Summary {
            devices: self.devices,
            checks: self.checks,
            ok: self.ok,
            error,
        }
    }
}

/// Transfers a word from memory into the device and back to another place.
fn memory(device: &Edu, page: &Page, word: u32) -> io::Result<(Outcome, u32)> {
    page.prepare(word)?;
    let stuck = match device.fetch(page.address(SOURCE))? {
        Ok(()) => device.store(page.address(TARGET))?,
        stuck => stuck,
    };
    let found = page.memory.read_u32(TARGET)?;
    Ok((outcome(stuck, found, word, SENTINEL), found))
}

/// An initiator and its target.
struct Pair<'a> {
    initiator: &'a Edu,
    target: &'a Target<'a>,
    /// Number of the initiator, starting at 1.
    slot: usize,
}

impl Pair<'_> {
    /// A word that is unique to the pair; `target` is the number of the target, starting at 1.
    fn word(&self, target: usize) -> io::Result<u32> {
        let numbers = u32::try_from(self.slot << 8 | target).map_err(io::Error::other)?;
        Ok(0xcafe_0000 | numbers)
    }

    /// The initiator writes a word to the target.
    fn write(&self, page: &Page, word: u32) -> io::Result<(Outcome, u32)> {
        let Self {
            initiator, target, ..
        } = self;
        let place = target.place(Access::Write, self.slot);
        page.prepare(word)?;
        target.set(place, SENTINEL)?;
        let stuck = match initiator.fetch(page.address(SOURCE))? {
            Ok(()) => initiator.store(target.address(place))?,
            stuck => stuck,
        };
        let found = target.get(place)?;
        let (expected, before) = (target.shown(word), target.shown(SENTINEL));
        Ok((outcome(stuck, found, expected, before), found))
    }

    /// The initiator reads a word from the target and writes it to memory.
    fn read(&self, page: &Page, word: u32) -> io::Result<(Outcome, u32)> {
        let Self {
            initiator, target, ..
        } = self;
        let place = target.place(Access::Read, self.slot);
        // The initiator's buffer starts with a known value, so that a read without data is detected.
        page.prepare(SENTINEL)?;
        target.set(place, word)?;
        let mut stuck = initiator.fetch(page.address(SOURCE))?;
        if stuck.is_ok() {
            stuck = initiator.fetch(target.address(place))?;
        }
        if stuck.is_ok() {
            stuck = initiator.store(page.address(TARGET))?;
        }
        let found = page.memory.read_u32(TARGET)?;
        let result = match outcome(stuck, found, target.shown(word), SENTINEL) {
            // Values that a root complex or an emulator returns for a read that no device answers (PCIe r6.0 §2.3.2).
            Outcome::Garbled if matches!(found, 0 | u32::MAX) => Outcome::Nothing,
            result => result,
        };
        Ok((result, found))
    }
}

fn outcome(transfer: Result<(), Stuck>, found: u32, expected: u32, before: u32) -> Outcome {
    match transfer {
        Err(Stuck) => Outcome::TimedOut,
        Ok(()) if found == expected => Outcome::Ok,
        Ok(()) if found == before => Outcome::Nothing,
        Ok(()) => Outcome::Garbled,
    }
}

/// A page of memory for DMA. Its physical address must not change meanwhile.
pub(crate) struct Page {
    memory: Mapping,
    physical: u64,
}

impl Page {
    pub(crate) fn new() -> io::Result<Self> {
        let memory = Mapping::locked_page()?;
        memory.write_u32(0, 0)?;
        let physical = memory.physical_address()?;
        Ok(Self { memory, physical })
    }

    pub(crate) fn prepare(&self, word: u32) -> io::Result<()> {
        self.memory.write_u32(SOURCE, word)?;
        self.memory.write_u32(TARGET, SENTINEL)
    }

    pub(crate) fn word(&self, offset: usize) -> io::Result<u32> {
        self.memory.read_u32(offset)
    }

    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.physical.saturating_add(offset as u64)
    }

    /// Checks the page's physical address: a locked page stays in memory, but the kernel may still move it.
    fn check_place(&self) -> io::Result<()> {
        if self.memory.physical_address()? == self.physical {
            return Ok(());
        }
        Err(io::Error::other(
            "the kernel moved the page during the round; run it again",
        ))
    }
}

/// A word in the format of findings.
pub(crate) fn hex(word: u32) -> String {
    format!("{word:#010x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_decides() {
        assert_eq!(outcome(Ok(()), 1, 1, 2), Outcome::Ok);
        assert_eq!(outcome(Ok(()), 2, 1, 2), Outcome::Nothing);
        assert_eq!(outcome(Ok(()), 3, 1, 2), Outcome::Garbled);
        assert_eq!(outcome(Err(Stuck), 1, 1, 2), Outcome::TimedOut);
    }

    #[test]
    fn a_round_without_checks_or_with_a_device_missing_is_not_good() {
        let mut round = Round::default();
        assert!(!round.is_good(None));
        round.devices = 1;
        round.count(Outcome::Ok);
        assert!(round.is_good(None));
        assert!(!round.is_good(Some(2)));
        round.count(Outcome::Nothing);
        assert!(!round.is_good(None));
    }
}
