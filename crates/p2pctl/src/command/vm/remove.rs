//! `p2pctl vm remove`: asks the guest to release a device, and waits until it is free.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde_json::{Value, json};
use vmm_api::{Client, ClientError, EventStream, Next, Record, RemoveDevice};

use super::CallError;
use crate::answer::Answer;
use crate::show::{Line, Text};

/// A removal request.
pub(super) struct Request<'a> {
    pub(super) id: &'a str,
    /// Timeout of the guest.
    pub(super) timeout: Duration,
    pub(super) force: bool,
}

/// Additional time for the VMM to report the result after the guest's timeout.
const GRACE: Duration = Duration::from_secs(10);
/// Interval of progress output, and of polling a VMM without events.
const TICK: Duration = Duration::from_millis(500);

pub(super) fn run(client: &Client, request: &Request<'_>, json: bool) -> Result<Answer, CallError> {
    let milliseconds = u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX);
    // Subscribes before the call, so that no event is missed.
    let events = match client.events() {
        Ok(events) => Some(events),
        // cloud-hypervisor does not have this call.
        Err(ClientError::Failed { status: 404, .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let own = events.is_some();
    client.remove_device(&RemoveDevice {
        id: request.id.to_owned(),
        timeout_ms: own.then_some(milliseconds),
        force: request.force,
    })?;
    let started = Instant::now();
    let mut progress = Progress::start(request.id, request.timeout);
    let ended = match events {
        // Without a guest the device is free at once.
        _ if is_gone(client, request.id)? => Ok(()),
        Some(events) => wait(events, request, &mut progress),
        None => poll(client, request, &mut progress),
    };
    progress.end();
    ended?;
    let took = started.elapsed().as_secs_f64();
    if json {
        return Ok(Answer::json(
            &json!({ "removed": request.id, "seconds": took }),
        )?);
    }
    let mut text = Text::new();
    text.push(
        Line::new()
            .strong(request.id)
            .plain(format_args!(" is free for the host, after {took:.1} s")),
    );
    Ok(Answer::text(text))
}

/// Waits for the event that reports the result.
fn wait(
    mut events: EventStream,
    request: &Request<'_>,
    progress: &mut Progress,
) -> Result<(), CallError> {
    let deadline = Instant::now() + request.timeout + GRACE;
    while Instant::now() < deadline {
        match events.next(TICK)? {
            Next::Event(record) => {
                if let Some(ended) = ended(&record, request.id) {
                    return Ok(ended?);
                }
            }
            Next::Quiet => {}
            Next::End => {
                let id = request.id;
                return Err(anyhow!("the VMM ended while {id} was being removed").into());
            }
        }
        progress.tick();
    }
    let id = request.id;
    Err(anyhow!("{id}: the VMM does not say what became of it").into())
}

/// The result of the removal of `id`, if the event reports it.
fn ended(record: &Record, id: &str) -> Option<anyhow::Result<()>> {
    let property = |key: &str| record.properties.as_ref()?.get(key);
    if property("id").map(String::as_str) != Some(id) {
        return None;
    }
    match record.event.as_str() {
        "device-removed" => Some(Ok(())),
        "device-unplug-timeout" => Some(Err(anyhow!(
            "{id}: the guest did not let go in time; the device is still attached\n       \
             see what the guest's kernel says, try again, or add --force to take it away"
        ))),
        _ => None,
    }
}

/// Whether the device is in no guest.
fn is_gone(client: &Client, id: &str) -> Result<bool, ClientError> {
    let info: Value = client.get("vm.info")?;
    let tree = info.get("device_tree").and_then(Value::as_object);
    Ok(tree.is_none_or(|tree| !tree.contains_key(id)))
}

/// Polls until the device is gone.
fn poll(client: &Client, request: &Request<'_>, progress: &mut Progress) -> Result<(), CallError> {
    let deadline = Instant::now() + request.timeout;
    while Instant::now() < deadline {
        if is_gone(client, request.id)? {
            return Ok(());
        }
        progress.tick();
        std::thread::sleep(TICK);
    }
    let id = request.id;
    Err(anyhow!("{id}: the guest did not let go in time; the device is still attached").into())
}

/// Progress on stderr: a counter on a terminal, otherwise a single line.
struct Progress {
    id: String,
    timeout: Duration,
    started: Instant,
    terminal: bool,
}

impl Progress {
    fn start(id: &str, timeout: Duration) -> Self {
        let this = Self {
            id: id.to_owned(),
            timeout,
            started: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        };
        let most = timeout.as_secs();
        if !this.terminal {
            eprintln!("{id}: the guest was asked to let go; waiting up to {most} s");
        }
        this
    }

    fn tick(&mut self) {
        if self.terminal {
            let (past, most) = (self.started.elapsed().as_secs(), self.timeout.as_secs());
            eprint!(
                "\r{}: the guest was asked to let go  {past} of {most} s ",
                self.id
            );
            let _ = std::io::stderr().flush();
        }
    }

    fn end(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: &str, id: &str) -> Record {
        let json = format!(
            r#"{{"timestamp":{{"secs":1,"nanos":0}},"source":"vm","event":"{event}","properties":{{"id":"{id}"}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn only_events_of_the_device_end_the_wait() {
        assert!(ended(&record("device-removed", "b"), "a").is_none());
        assert!(ended(&record("device-added", "a"), "a").is_none());
        assert!(ended(&record("device-removed", "a"), "a").unwrap().is_ok());
        let late = ended(&record("device-unplug-timeout", "a"), "a").unwrap();
        assert!(late.unwrap_err().to_string().contains("still attached"));
    }
}
