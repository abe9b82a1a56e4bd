#![doc = include_str!("../README.md")]

mod assignment;
mod bar_maps;
mod endpoint;
mod fixed_bars;
mod memory;
mod port;
mod resources;
mod slot;
mod subtree;

pub use assignment::{
    AssignError, Demands, GuestTopology, PlacedEndpoint, SizeAlign, assign_resources,
};
pub use bar_maps::{BarArea, BarChange, BarMaps, ConfigHeader, after_write};
pub use endpoint::{BarError, Endpoint, EndpointError};
pub use fixed_bars::{BarMove, FixedBars};
pub use memory::{MemoryError, check_memory, usable_apertures};
pub use port::{BusNumbers, PortKind, VirtualPort};
pub use resources::{Apertures, BusResources, SWITCH_SLOTS};
pub use slot::{Slot, SlotBus};
pub use subtree::{Reserve, Subtree};
