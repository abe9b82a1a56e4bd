//! A proxy in front of a VMM's API that records all calls and answers.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

/// A call and its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Exchange {
    verb: String,
    call: String,
    /// Body of the call; null if it has none.
    body: Value,
    status: u16,
    answer: Value,
}

/// The recorded calls in order. Immediate repetitions are recorded once.
#[derive(Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Vec<Exchange>>>);

impl Recorder {
    /// Listens on a socket beside `socket` and returns its path.
    pub(super) fn stand_before(&self, socket: &Path) -> Result<PathBuf> {
        let own = socket.with_extension("recorded");
        let listener = UnixListener::bind(&own)
            .with_context(|| format!("cannot listen at {}", own.display()))?;
        let (this, socket) = (self.clone(), socket.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                if let Err(error) = this.relay(client, &socket) {
                    eprintln!("vmm-conformance: {error:#}");
                }
            }
        });
        Ok(own)
    }

    pub(super) fn exchanges(&self) -> Vec<Exchange> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Forwards one call. Clients of this project use one connection for each call.
    fn relay(&self, mut client: UnixStream, socket: &Path) -> Result<()> {
        let asked = message(&mut client)?;
        // A client that only checks whether the socket is open sends nothing.
        if asked.is_empty() {
            return Ok(());
        }
        let mut vmm = UnixStream::connect(socket).context("cannot connect to the VMM")?;
        vmm.write_all(&asked)?;
        let answered = message(&mut vmm)?;
        let exchange = exchange(&asked, &answered).context("cannot understand what was said")?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.last() != Some(&exchange) {
            all.push(exchange);
        }
        drop(all);
        Ok(client.write_all(&answered)?)
    }
}

fn exchange(asked: &[u8], answered: &[u8]) -> Option<Exchange> {
    let (asked, answered) = (
        String::from_utf8_lossy(asked),
        String::from_utf8_lossy(answered),
    );
    let (head, body) = asked.split_once("\r\n\r\n")?;
    let (answer_head, answer) = answered.split_once("\r\n\r\n")?;
    let mut words = head.split(' ');
    let (verb, target) = (words.next()?, words.next()?);
    let json = |text: &str| serde_json::from_str(text).unwrap_or_default();
    Some(Exchange {
        verb: verb.to_owned(),
        call: target.rsplit('/').next()?.to_owned(),
        body: json(body),
        status: answer_head.split(' ').nth(1)?.parse().ok()?,
        answer: json(answer),
    })
}

/// Reads a message with its body; empty if the stream ends first.
fn message(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length:")?
                    .trim()
                    .parse()
                    .ok()
            });
            if body.len() >= length.unwrap_or(0) {
                return Ok(bytes);
            }
        }
        let mut some = [0; 4096];
        let count = stream.read(&mut some)?;
        ensure!(count > 0 || bytes.is_empty(), "a message has no end");
        if count == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(some.get(..count).unwrap_or_default());
    }
}
