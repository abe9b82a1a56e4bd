//! Finds devices in a guest and makes them do DMA into each other.
fn main() {}
