//! The tests of `embed_light.rs` on switch ports with ACS, with CPUs whose guests accept P2PDMA between any two devices.

#[path = "embed_light.rs"]
mod embed_light;
