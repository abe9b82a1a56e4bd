//! The base address registers of a function, with their sizes.

use super::{Function, Topology};
use crate::address::{Address, BusAddress};
use crate::config::{BarRegister, HeaderLayout, Space};

/// Lines 7 to 12 of the file `resource` are the VF BARs, each covering all virtual functions.
const FIRST_VF_BAR: u8 = 7;

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

impl Topology {
    /// The BARs of a function with their sizes. Empty if sysfs has no addresses for it.
    #[must_use]
    pub fn bars(&self, function: &Function) -> Vec<Bar> {
        let bar = |index| {
            let resource = function.resources().line(index)?;
            let address = || bus_address(self, function, index, resource.start);
            Some(Bar {
                index,
                space: resource.space()?,
                prefetchable: resource.is_prefetchable(),
                bus_address: resource.is_assigned().then(address).map(BusAddress::new),
                size_bytes: resource.end.checked_sub(resource.start)?.checked_add(1)?,
            })
        };
        (0..6).filter_map(bar).collect()
    }
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
