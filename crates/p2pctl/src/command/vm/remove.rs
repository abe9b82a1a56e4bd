//! `p2pctl vm remove`: asks the guest to release a device, and waits until it is free.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde_json::{Value, json};
use vmm_api::{Client, ClientError, EventStream, Next, Record, RemoveDevice};

use super::CallError;
use crate::answer::Answer;
use crate::cli::RemoveArgs;
use crate::show::Line;

/// Additional time for the VMM to report the result after the guest's timeout.
const GRACE: Duration = Duration::from_secs(10);
/// Interval of progress output, and of polling a VMM without events.
const TICK: Duration = Duration::from_millis(500);

pub(super) fn run(client: &Client, args: &RemoveArgs, json: bool) -> Result<Answer, CallError> {
    // Subscribes before the call, so that no event is missed.
    let events = match client.events() {
        Ok(events) => Some(events),
        // cloud-hypervisor does not have this call.
        Err(ClientError::Failed { status: 404, .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let own = events.is_some();
    client.remove_device(&RemoveDevice {
        id: args.id.clone(),
        timeout_ms: own.then(|| u64::from(args.timeout) * 1000),
        force: args.force,
    })?;
    let started = Instant::now();
    let mut progress = Progress::start(args);
    let ended = match events {
        // Without a guest the device is free at once.
        _ if is_gone(client, &args.id)? => Ok(()),
        Some(events) => wait(events, args, &mut progress),
        None => poll(client, args, &mut progress),
    };
    progress.end();
    ended?;
    let took = started.elapsed().as_secs_f64();
    let document = json!({ "removed": args.id, "seconds": took });
    Ok(Answer::either(json, &document, || {
        let line = Line::new().strong(&args.id);
        line.plain(format_args!(" is free for the host, after {took:.1} s"))
            .into()
    })?)
}

/// Waits for the event that reports the result.
fn wait(
    mut events: EventStream,
    args: &RemoveArgs,
    progress: &mut Progress<'_>,
) -> Result<(), CallError> {
    let deadline = Instant::now() + timeout(args) + GRACE;
    while Instant::now() < deadline {
        match events.next(TICK)? {
            Next::Event(record) => {
                if let Some(ended) = ended(&record, &args.id) {
                    return Ok(ended?);
                }
            }
            Next::Quiet => {}
            Next::End => {
                let id = &args.id;
                return Err(anyhow!("the VMM ended while {id} was being removed").into());
            }
        }
        progress.tick();
    }
    let id = &args.id;
    Err(anyhow!("{id}: the VMM did not report the result").into())
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
            "{id}: the guest did not release it in time; the device is still attached\n       \
             check the guest's kernel log, try again, or add --force"
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
fn poll(client: &Client, args: &RemoveArgs, progress: &mut Progress<'_>) -> Result<(), CallError> {
    let deadline = Instant::now() + timeout(args);
    while Instant::now() < deadline {
        if is_gone(client, &args.id)? {
            return Ok(());
        }
        progress.tick();
        std::thread::sleep(TICK);
    }
    let id = &args.id;
    Err(anyhow!("{id}: the guest did not release it in time; the device is still attached").into())
}

fn timeout(args: &RemoveArgs) -> Duration {
    Duration::from_secs(args.timeout.into())
}

/// Progress on stderr: a counter on a terminal, otherwise a single line.
struct Progress<'a> {
    args: &'a RemoveArgs,
    started: Instant,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn start(args: &'a RemoveArgs) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let RemoveArgs { id, timeout, .. } = args;
        if !terminal {
            eprintln!("{id}: asked the guest to release it; waiting up to {timeout} s");
        }
        Self {
            args,
            started: Instant::now(),
            terminal,
        }
    }

    fn tick(&mut self) {
        if self.terminal {
            let RemoveArgs { id, timeout, .. } = self.args;
            let past = self.started.elapsed().as_secs();
            eprint!("\r{id}: asked the guest to release it  {past} of {timeout} s ");
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
