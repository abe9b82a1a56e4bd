//! Fuzz targets: everything that reads what a guest, a client, a VMM, a file or a device says.
//!
//! A target takes arbitrary bytes and panics if something does not hold. `tests/smoke.rs` runs every target on its seeds
//! and on a few thousand mutations of them; `cargo xtask fuzz` runs them in libFuzzer.

mod bytes;
mod mutate;
mod topology;

pub use mutate::{Mutator, dictionary};

/// A function that takes untrusted input, with checks around it.
#[derive(Debug)]
pub struct Target {
    /// Its name, which is also that of its directory of seeds.
    pub name: &'static str,
    /// Runs it on one input; panics if something does not hold.
    pub run: fn(&[u8]),
    /// Mutations of seeds that the smoke test runs: about a second's worth in a debug build.
    pub mutations: u64,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target::new("config", topology::config, 4000),
    Target::new("fixture", topology::fixture, 2000),
    Target::new("machine", topology::machine, 300),
    Target::new("plan", topology::plan, 2000),
    Target::new("regroup", topology::regroup, 300),
];

impl Target {
    const fn new(name: &'static str, run: fn(&[u8]), mutations: u64) -> Self {
        Self {
            name,
            run,
            mutations,
        }
    }

    /// The target with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}
