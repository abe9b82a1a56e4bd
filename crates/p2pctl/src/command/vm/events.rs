//! `p2pctl vm events`: the VM's events as they occur.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use vmm_api::{Client, Next, Record};

use super::CallError;
use crate::answer::Answer;
use crate::show::Text;

/// Timeout of one wait; the next wait follows at once.
const WAIT: Duration = Duration::from_secs(3600);

pub(in crate::command) fn run(client: &Client, json: bool) -> Result<Answer, CallError> {
    let mut events = client.events()?;
    // The first event may take long. Only events from here on are printed.
    eprintln!("waiting for events (Ctrl-C ends it)");
    let mut stdout = io::stdout().lock();
    loop {
        let record = match events.next(WAIT)? {
            Next::Event(record) => record,
            Next::Quiet => continue,
            Next::End => return Ok(Answer::text(Text::new())),
        };
        let line = match json {
            true => serde_json::to_string(&record).context("cannot write an event")?,
            false => line(&record),
        };
        // Each line is flushed at once. A closed pipe, as with `head`, ends the command.
        match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Answer::text(Text::new()));
            }
            written => written.context("cannot write to standard output")?,
        }
    }
}

/// `   12.345  vm device-added  bdf=0000:02:00.0 id=nvme0`
fn line(record: &Record) -> String {
    let properties = record.properties.iter().flatten();
    let properties: Vec<_> = properties
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let line = format!(
        "{:>10.3}  {} {}  {}",
        record.timestamp.as_secs_f64(),
        record.source,
        record.event,
        properties.join(" ")
    );
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let json = r#"{"timestamp":{"secs":12,"nanos":345000000},"source":"vm",
            "event":"device-added","properties":{"id":"nvme0","bdf":"0000:02:00.0"}}"#;
        let record = serde_json::from_str(json).unwrap();
        assert_eq!(
            line(&record),
            "    12.345  vm device-added  bdf=0000:02:00.0 id=nvme0"
        );
    }
}
