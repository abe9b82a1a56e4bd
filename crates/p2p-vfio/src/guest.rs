//! What the guest sees above its devices: ports, bus numbers, windows.

mod layout;
mod port;

pub use layout::{
    Apertures, Branch, Endpoint, Ground, GuestTopology, LayoutError, PlacedEndpoint, SWITCH_SLOTS,
    Spare, fixed_windows, lay_out,
};
pub use port::{BusNumbers, Link, PortKind, VirtualPort};
