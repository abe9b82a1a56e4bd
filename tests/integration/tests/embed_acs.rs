//! The tests of `embed.rs` on switch ports with ACS, with CPUs whose guests accept P2PDMA between any two devices.

#[path = "embed.rs"]
mod embed;
