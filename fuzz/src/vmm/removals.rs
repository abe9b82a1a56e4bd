//! Reads the file that cloud-hypervisor's event monitor writes, while the file grows.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::LazyLock;

use tempfile::TempDir;

use events::Removals;

#[path = "../../../crates/hotplug/src/regroup/cloud_hypervisor/events.rs"]
mod events;

/// The process that the events belong to, and a device that they may report as removed.
const PID: u32 = 9;
const DEVICE: &str = "gpu0";

static DIR: LazyLock<TempDir> = LazyLock::new(crate::memory_dir);

/// The input is the place where the text is split, and the text. Checks that reading in pieces and at once reports the
/// same removal, and that a reported removal stays reported.
pub(crate) fn monitor(input: &[u8]) {
    let Some((split, text)) = input.split_first() else {
        return;
    };
    let path = DIR.path().join(PID.to_string());
    fs::write(&path, b"").expect("a file");
    let mut pieces = Removals::of(DIR.path(), PID);
    let mut whole = Removals::of(DIR.path(), PID);
    assert!(pieces.is_active() && !pieces.reports(DEVICE));
    let (first, rest) = text.split_at(usize::from(*split) * 4 % (text.len() + 1));
    let mut file = OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("the file");
    file.write_all(first).expect("space");
    let early = pieces.reports(DEVICE);
    file.write_all(rest).expect("space");
    let told = pieces.reports(DEVICE);
    assert_eq!(told, whole.reports(DEVICE), "in pieces and at once");
    assert!(told || !early, "it was told, and is not any more");
}
