//! cloud-hypervisor's event monitor.
//!
//! Changing a VM's devices requires knowing when the guest has released one, and only the event monitor reports that.
//! It writes without blocking and drops events that do not fit, so its output is a regular file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};

use crate::cloud_hypervisor::{Change, CommandLine, Rewritten, option};
use crate::registry::EVENTS;

/// The output file of the event monitor to add, if the command line has none. Without an API nothing acts on events, so
/// none is added.
pub(super) fn wanted(line: &CommandLine) -> Option<PathBuf> {
    api_socket(line)?;
    // `exec` keeps the process ID.
    let path = Path::new(EVENTS).join(process::id().to_string());
    (!line.has("--event-monitor")).then_some(path)
}

/// Adds an event monitor that writes to this file.
pub(super) fn add(file: &Path, rewritten: &mut Rewritten) {
    let value = format!("path={}", file.display());
    rewritten.line.append("--event-monitor", &value);
    rewritten.changes.push(Change {
        what: format!("--event-monitor {value}"),
        why: "reports when the guest has released a device; a regular file loses no event"
            .to_owned(),
    });
}

/// The socket of the VMM: `--api-socket path=PATH`, or `PATH` alone.
pub(super) fn api_socket(line: &CommandLine) -> Option<PathBuf> {
    let bare = || {
        let text = line.values("--api-socket").pop()?.text;
        (!text.contains('=')).then_some(text)
    };
    let path = option(line, "--api-socket", "path").or_else(bare);
    path.map(PathBuf::from)
}

/// Creates the directory, and removes files of VMMs that have ended.
pub(super) fn make_room(file: &Path) -> Result<()> {
    let dir = file.parent().unwrap_or(Path::new(EVENTS));
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries.flatten() {
        let gone = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if entry.file_name().to_str().is_some_and(gone) {
            // Another process may clean up at the same time.
            drop(fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> CommandLine {
        CommandLine::new(words.iter().map(std::ffi::OsString::from).collect())
    }

    #[test]
    fn an_event_monitor_is_added_where_there_is_an_api_and_none_yet() {
        for (words, wants) in [
            (&["ch", "--api-socket", "/run/a"][..], true),
            (&["ch", "--api-socket=path=/run/a"], true),
            (&["ch", "--api-socket", "fd=3"], false),
            (&["ch", "--kernel", "/k"], false),
            (
                &["ch", "--api-socket", "/a", "--event-monitor", "fd=4"],
                false,
            ),
        ] {
            assert_eq!(wanted(&line(words)).is_some(), wants, "{words:?}");
        }
    }

    #[test]
    fn what_dead_vmms_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(process::id().to_string());
        // Larger than any process ID (linux include/linux/threads.h: `PID_MAX_LIMIT`).
        let dead = dir.path().join("4194305");
        let other = dir.path().join("notes");
        for file in [&own, &dead, &other] {
            fs::write(file, "").unwrap();
        }
        make_room(&own).unwrap();
        assert!(own.exists() && !dead.exists() && other.exists());
    }
}
