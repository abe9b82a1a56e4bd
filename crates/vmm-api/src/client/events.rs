//! Reader for the stream of events (WHATWG HTML §9.2: server-sent events).

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::ClientError;
use super::http_exchange::HttpExchange;
use crate::Record;

const CALL: &str = "events";
/// Largest event, in bytes.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// A stream of events from a VMM.
pub struct EventStream {
    stream: UnixStream,
    /// Bytes received and not yet parsed.
    bytes: Vec<u8>,
}

/// Result of waiting for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// An event.
    Event(Record),
    /// No event within the timeout.
    Quiet,
    /// The VMM closed the stream.
    End,
}

impl EventStream {
    pub(super) fn open(socket: &Path, patience: Duration) -> Result<Self, ClientError> {
        let mut exchange = HttpExchange::open(socket, CALL, patience)?;
        // Answers to HTTP/1.0 clients are not chunked (RFC 9112 §6.1).
        exchange.send_request("GET /api/v1/events HTTP/1.0", None, &[])?;
        let (head, bytes) = exchange.head()?;
        let bytes = head.body_in(&bytes).to_vec();
        if head.status != 200 {
            return Err(ClientError::from_answer(CALL, head.status, &bytes));
        }
        Ok(Self {
            stream: exchange.into_stream(),
            bytes,
        })
    }

    /// Waits for the next event, at most for `patience`.
    ///
    /// # Errors
    /// The connection broke, or the data is not a stream of events.
    pub fn next(&mut self, patience: Duration) -> Result<Next, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            while let Some(block) = self.block() {
                if let Some(record) = parse(&block)? {
                    return Ok(Next::Event(record));
                }
            }
            if self.bytes.len() > MAX_EVENT_BYTES {
                return Err(ClientError::malformed(CALL, "an event is too long"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Quiet);
            }
            match self.read(left) {
                Ok(0) => return Ok(Next::End),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(Next::Quiet),
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        return Err(ClientError::Broken {
                            call: CALL.to_owned(),
                            source: error,
                        });
                    }
                },
            }
        }
    }

    fn read(&mut self, patience: Duration) -> io::Result<usize> {
        let mut some = [0; 4096];
        self.stream.set_read_timeout(Some(patience))?;
        let count = self.stream.read(&mut some)?;
        self.bytes
            .extend_from_slice(some.get(..count).unwrap_or_default());
        Ok(count)
    }

    /// The next block of lines, without the empty line that ends it.
    fn block(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.windows(2).position(|pair| pair == b"\n\n")?;
        let rest = self.bytes.split_off(end + 2);
        let mut block = std::mem::replace(&mut self.bytes, rest);
        block.truncate(end);
        Some(block)
    }
}

/// Parses the event in a block. Returns `None` for a keep-alive comment.
fn parse(block: &[u8]) -> Result<Option<Record>, ClientError> {
    let text = std::str::from_utf8(block).map_err(|error| ClientError::malformed(CALL, error))?;
    let data: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .collect();
    if data.is_empty() {
        return Ok(None);
    }
    let record = serde_json::from_str(&data.join("\n"));
    record
        .map(Some)
        .map_err(|error| ClientError::malformed(CALL, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_comments_are_skipped() {
        assert_eq!(parse(b":").unwrap(), None);
        assert_eq!(parse(b"").unwrap(), None);
    }

    #[test]
    fn data_is_a_record() {
        let block = br#"id: 7
event: booted
data: {"timestamp":{"secs":1,"nanos":2},"source":"vm","event":"booted","properties":null}"#;
        let record = parse(block).unwrap().unwrap();
        assert_eq!(record.event, "booted");
        assert!(parse(b"data: {}").is_err());
    }
}
