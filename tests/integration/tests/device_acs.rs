//! The tests of `device.rs` on switch ports with ACS.

#[path = "device.rs"]
mod device;
