//! What cloud-hypervisor's event monitor writes to a file: JSON, one value after the other.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

/// More than any wait brings.
const MOST_BYTES: u64 = 1 << 20;

/// Devices that are told to be gone, from the time that this is made on.
#[derive(Debug)]
pub(super) struct Removals {
    file: Option<File>,
    /// What has come up to now.
    text: Vec<u8>,
}

impl Removals {
    /// What the VMM with this process id tells.
    pub(super) fn of(dir: &Path, pid: u32) -> Self {
        let file = File::open(dir.join(pid.to_string())).ok();
        let file = file.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file).ok());
        Self {
            file,
            text: Vec::new(),
        }
    }

    /// Whether anything may be told at all.
    pub(super) fn tells(&self) -> bool {
        self.file.is_some()
    }

    /// Whether this device was told to be gone.
    pub(super) fn told(&mut self, id: &str) -> bool {
        let Some(file) = &mut self.file else {
            return false;
        };
        // What cannot be read is as good as not told.
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
    fn what_comes_is_heard_also_in_pieces_and_what_was_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("9");
        let event = "{\"timestamp\":{\"secs\":4,\"nanos\":1},\"source\":\"vm\",\"event\":\"device-removed\",\
            \"properties\":{\"bdf\":\"0000:00:05.0\",\"id\":\"gpu0\"}}\n\n";
        fs::write(&path, event).unwrap();
        let mut removals = Removals::of(dir.path(), 9);
        assert!(removals.tells() && !removals.told("gpu0"));
        let (first, rest) = event.split_at(60);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        assert!(!removals.told("gpu0"));
        file.write_all(rest.as_bytes()).unwrap();
        assert!(removals.told("gpu0") && !removals.told("gpu1"));
        assert!(!Removals::of(dir.path(), 10).tells());
    }
}
