//! The tests of `one_group.rs` on switch ports with ACS.

#[path = "one_group.rs"]
mod one_group;
