//! Fuzz targets for all code that reads input from a guest, a client, a VMM, a file or a device.
//!
//! A target takes arbitrary bytes and panics if a checked property is violated. `tests/smoke.rs` runs every target on
//! its seeds and on a few thousand mutations of them; `cargo xtask fuzz` runs them in libFuzzer.

mod bytes;
#[allow(dead_code, reason = "p2pctl uses what targets do not")]
mod cloud_hypervisor;
#[path = "../../crates/hotplug/tests/regroup/fake_host.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with tests")]
mod fake_host;
#[path = "../../crates/hotplug/tests/regroup/faults.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with tests")]
mod faults;
mod guest;
mod http;
mod journal;
mod mutate;
#[allow(dead_code, unused_imports, reason = "the VMM uses what targets do not")]
mod pci;
mod text;
mod topology;
mod vmm;

use tempfile::TempDir;

pub use mutate::{Mutator, dictionary};

/// A function that parses untrusted input and checks properties of the result.
#[derive(Debug)]
pub struct Target {
    /// Name of the target, which is also the name of its directory of seeds.
    pub name: &'static str,
    /// Runs the target on one input. Panics if a property is violated.
    pub run: fn(&[u8]),
    /// Number of mutations of seeds that the smoke test runs: about a second in a debug build.
    pub mutations: u64,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target::new("answer", vmm::answer, 1000),
    Target::new("api", http::api, 500),
    Target::new("bus", guest::bus, 1500),
    Target::new("device", guest::device, 1500),
    Target::new("domains", text::domains, 4000),
    Target::new("journal", journal::journal, 100),
    Target::new("json", text::json, 8000),
    Target::new("launch", text::launch, 4000),
    Target::new("monitor", vmm::monitor, 3000),
    Target::new("options", text::options, 8000),
    Target::new("policy", text::policy, 4000),
    Target::new("proxy", http::proxy, 500),
    Target::new("port", guest::port, 5000),
    Target::new("slots", guest::slots, 3000),
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

    /// Returns the target with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}

/// A directory in memory, if the system has a file system for it.
fn memory_dir() -> TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    dir.expect("a directory")
}
