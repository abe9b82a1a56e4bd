//! The tests of `nvme.rs` on switch ports with ACS, with CPUs whose guests accept P2PDMA between any two devices.

#[path = "nvme.rs"]
mod nvme;
