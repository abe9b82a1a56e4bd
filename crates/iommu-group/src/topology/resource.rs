//! Addresses that the kernel assigned to a function.

use super::{Function, Topology};
use crate::address::{Address, BusAddress};
use crate::config::{BarRegister, HeaderLayout, Space};

/// One line of the file `resource`: CPU addresses and flags (linux 7.2 include/linux/ioport.h: `IORESOURCE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) line: u8,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) flags: u64,
}

const IO: u64 = 0x100;
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
const MEMORY_64: u64 = 0x0010_0000;
const DISABLED: u64 = 0x1000_0000;
const UNSET: u64 = 0x2000_0000;
/// Lines 7 to 12 are the VF BARs, each covering all virtual functions.
const FIRST_VF_BAR: u8 = 7;

/// The nonzero lines of the file `resource`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ResourceLines(pub(crate) Vec<Resource>);

impl ResourceLines {
    /// Parses lines of the form `start end flags`. Invalid lines are skipped.
    pub(crate) fn parse(text: &str) -> Self {
        let parsed = text.lines().zip(0_u8..).filter_map(|(text, line)| {
            let mut words = text
                .split_ascii_whitespace()
                .map(|word| u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok());
            let resource = Resource {
                line,
                start: words.next()??,
                end: words.next()??,
                flags: words.next()??,
            };
            (resource.flags != 0).then_some(resource)
        });
        Self(parsed.collect())
    }

    /// Whether there are no lines: the function has no addresses, or sysfs does not have them.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn line(&self, line: u8) -> Option<&Resource> {
        self.0.iter().find(|resource| resource.line == line)
    }
}

/// A base address register with its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// BAR number, 0 to 5.
    pub index: u8,
    /// Kind of address space.
    pub space: Space,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Start address on the bus, which peer-to-peer requests use. `None` if no address is assigned. It differs from the
    /// CPU address on hosts whose bridge translates addresses.
    pub bus_address: Option<BusAddress>,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Bar {
    /// Whether it is a memory BAR. Other devices can reach only memory BARs.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        self.space != Space::Io
    }

    /// Whether it may be above 4 GiB.
    #[must_use]
    pub fn is_64bit(&self) -> bool {
        self.space == Space::Memory64
    }
}

pub(super) fn bars(topology: &Topology, function: &Function) -> Vec<Bar> {
    (0..6_u8)
        .filter_map(|index| {
            let resource = function.resources().line(index)?;
            let space = match (resource.flags & IO != 0, resource.flags & MEMORY_64 != 0) {
                (true, _) => Space::Io,
                (false, true) => Space::Memory64,
                (false, false) if resource.flags & MEMORY != 0 => Space::Memory32,
                (false, false) => return None,
            };
            let size_bytes = resource.end.checked_sub(resource.start)?.checked_add(1)?;
            let assigned = resource.flags & (UNSET | DISABLED) == 0;
            Some(Bar {
                index,
                space,
                prefetchable: resource.flags & PREFETCHABLE != 0,
                bus_address: assigned.then(|| {
                    BusAddress::new(bus_address(topology, function, index, resource.start))
                }),
                size_bytes,
            })
        })
        .collect()
}

/// Converts the CPU address of a BAR to its bus address. If the register cannot be read, both are assumed to be equal,
/// as on x86.
fn bus_address(topology: &Topology, function: &Function, index: u8, cpu_address: u64) -> u64 {
    let register = register(function, index);
    let offset = match function
        .physical_function()
        .and_then(|sbdf| topology.get(sbdf))
    {
        None => return register.map_or(cpu_address, |register| register.address),
        // The BAR registers of a virtual function read zero. Their addresses derive from the VF BARs of the physical
        // function.
        Some(physical) => {
            let all = physical
                .resources()
                .line(FIRST_VF_BAR.saturating_add(index));
            let on_bus = physical
                .config()
                .sriov
                .and_then(|sriov| sriov.vf_bars.get(usize::from(index)).copied().flatten());
            match (all, on_bus) {
                (Some(all), Some(on_bus)) => on_bus.address.wrapping_sub(all.start),
                _ => 0,
            }
        }
    };
    cpu_address.wrapping_add(offset)
}

fn register(function: &Function, index: u8) -> Option<BarRegister> {
    match &function.config().header.as_ref()?.layout {
        HeaderLayout::Device { bars } => bars.get(usize::from(index)).copied().flatten(),
        HeaderLayout::Bridge { bars, .. } => bars.get(usize::from(index)).copied().flatten(),
        HeaderLayout::CardBus | HeaderLayout::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_flags_and_without_sense_are_left_out() {
        let text = "0x00000000febf0000 0x00000000febf0fff 0x0000000000040200\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    nonsense\n\
                    0x1 0x2\n\
                    0x10 0x1f 0x0000000000040101 more\n";
        let lines = ResourceLines::parse(text);
        assert_eq!(
            lines.0,
            [
                Resource {
                    line: 0,
                    start: 0xfebf_0000,
                    end: 0xfebf_0fff,
                    flags: 0x4_0200
                },
                Resource {
                    line: 4,
                    start: 0x10,
                    end: 0x1f,
                    flags: 0x4_0101
                },
            ]
        );
        assert_eq!(ResourceLines::parse(""), ResourceLines::default());
    }
}
