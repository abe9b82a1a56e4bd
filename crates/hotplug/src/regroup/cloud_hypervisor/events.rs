//! Reads the file of cloud-hypervisor's event monitor: JSON values without separators.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

/// Limit of one read, more than a wait produces.
const MOST_BYTES: u64 = 1 << 20;

/// Removal events since the creation of this object.
#[derive(Debug)]
pub(super) struct Removals {
    file: Option<File>,
    /// The text read so far.
    text: Vec<u8>,
}

impl Removals {
    /// Starts to read the events of the VMM with this process ID.
    pub(super) fn of(dir: &Path, pid: u32) -> Self {
        let file = File::open(dir.join(pid.to_string())).ok();
        let file = file.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file).ok());
        Self {
            file,
            text: Vec::new(),
        }
    }

    /// Whether there is an event monitor.
    pub(super) fn is_active(&self) -> bool {
        self.file.is_some()
    }

    /// Whether the removal of this device was reported.
    pub(super) fn reports(&mut self, id: &str) -> bool {
        let Some(file) = &mut self.file else {
            return false;
        };
        // If reading fails, the monitor is ignored from then on.
        if file.take(MOST_BYTES).read_to_end(&mut self.text).is_err() {
            self.file = None;
        }
        let events = serde_json::Deserializer::from_slice(&self.text).into_iter::<Value>();
        events.map_while(Result::ok).any(|event| {
            let name = event.get("event").and_then(Value::as_str);
            let of = event.pointer("/properties/id").and_then(Value::as_str);
            name == Some("device-removed") && of == Some(id)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn new_events_are_found_even_in_pieces_and_old_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("9");
        let event = "{\"timestamp\":{\"secs\":4,\"nanos\":1},\"source\":\"vm\",\"event\":\"device-removed\",\
            \"properties\":{\"bdf\":\"0000:00:05.0\",\"id\":\"gpu0\"}}\n\n";
        fs::write(&path, event).unwrap();
        let mut removals = Removals::of(dir.path(), 9);
        assert!(removals.is_active() && !removals.reports("gpu0"));
        let (first, rest) = event.split_at(60);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        assert!(!removals.reports("gpu0"));
        file.write_all(rest.as_bytes()).unwrap();
        assert!(removals.reports("gpu0") && !removals.reports("gpu1"));
        assert!(!Removals::of(dir.path(), 10).is_active());
    }
}
