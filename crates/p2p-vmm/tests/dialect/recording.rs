//! A recording: requests and responses, without parts that differ between runs.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::vmm::Vmm;

/// Timeout for a response.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Placeholder for the directory of the VMM.
pub(crate) const DIR: &str = "$DIR";

/// The exchanges of all commands.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recording(pub(crate) Vec<Exchange>);

/// The request and the response of one `ch-remote`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exchange {
    /// Its command line.
    pub(crate) command: String,
    pub(crate) sent: String,
    pub(crate) received: String,
}

impl Recording {
    pub(crate) fn load(file: &Path) -> Self {
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
    }

    pub(crate) fn save(&self, file: &Path) {
        let text = serde_json::to_string_pretty(self).unwrap();
        fs::write(file, format!("{text}\n")).unwrap();
    }

    /// Sends all requests again. The responses must be the same.
    pub(crate) fn replay(&self, vmm: &mut Vmm) {
        assert!(!self.0.is_empty());
        let dir = vmm.dir().display().to_string();
        for exchange in &self.0 {
            let mut stream = UnixStream::connect(vmm.socket()).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let sent = exchange.sent.replace(DIR, &dir);
            stream.write_all(sent.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut received = String::new();
            stream.read_to_string(&mut received).unwrap();
            assert_eq!(
                normalized(&received, &dir),
                exchange.received,
                "ch-remote {}",
                exchange.command
            );
        }
        assert!(vmm.exits_successfully());
    }
}

/// `answer` without its date and its length, which is checked, and with placeholders for process ids and paths.
pub(crate) fn normalized(answer: &str, dir: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = Vec::new();
    for line in head.split("\r\n") {
        match line.split_once(": ") {
            Some(("Date", _)) => {}
            Some(("Content-Length", length)) => {
                assert_eq!(length.parse(), Ok(body.len()), "{answer}");
            }
            _ => lines.push(line),
        }
    }
    let mut body = body.replace(dir, DIR);
    if let Ok(Value::Object(object)) = serde_json::from_str(&body)
        && let Some(pid) = object.get("pid")
    {
        body = body.replace(&format!("\"pid\":{pid}"), "\"pid\":1");
    }
    format!("{}\r\n\r\n{body}", lines.join("\r\n"))
}
