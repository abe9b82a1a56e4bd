//! One HTTP request and its answer (RFC 9112), with a deadline.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{ClientError, connect};
use crate::descriptors::send;

/// Largest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Largest body of an answer, in bytes. The description of a VM with several hundred devices takes a quarter of it.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Largest number of headers in an answer.
const MAX_HEADERS: usize = 64;

/// A connection that carries one request.
pub(crate) struct HttpExchange {
    stream: UnixStream,
    call: String,
    patience: Duration,
    deadline: Instant,
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// Offset of the body.
    end: usize,
    body_bytes: Option<usize>,
}

impl Head {
    /// The part of `bytes` that belongs to the body; `bytes` begin with this head.
    pub(super) fn body_in<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.end..).unwrap_or_default()
    }
}

impl HttpExchange {
    /// Connects to `socket` for a call that may take up to `patience` in all.
    pub(crate) fn open(socket: &Path, call: &str, patience: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + patience;
        let stream = connect(socket, patience).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => ClientError::Late {
                call: call.to_owned(),
                patience,
            },
            _ => ClientError::Connect {
                socket: socket.to_owned(),
                source,
            },
        })?;
        Ok(Self {
            stream,
            call: call.to_owned(),
            patience,
            deadline,
        })
    }

    /// Sends the request that begins with `line`, with the descriptors.
    pub(crate) fn send_request(
        &mut self,
        line: &str,
        body: Option<&[u8]>,
        fds: &[OwnedFd],
    ) -> Result<(), ClientError> {
        let mut request = format!("{line}\r\nHost: localhost\r\nAccept: */*\r\n").into_bytes();
        if let Some(body) = body {
            let length = format!("Content-Length: {}\r\n", body.len());
            request.extend_from_slice(length.as_bytes());
            request.extend_from_slice(b"Content-Type: application/json\r\n");
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body.unwrap_or_default());
        let mut rest = request.as_slice();
        let mut fds = fds;
        while !rest.is_empty() {
            let left = self.left()?;
            let sent = self
                .stream
                .set_write_timeout(Some(left))
                .and_then(|()| send(&self.stream, rest, fds).map_err(io::Error::from));
            match sent {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    fds = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
        Ok(())
    }

    /// The body of the answer, if there is one. An answer with an error status is an error.
    pub(super) fn answer(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let (status, body) = self.whole_answer()?;
        if (200..300).contains(&status) {
            return Ok((!body.is_empty()).then_some(body));
        }
        Err(ClientError::from_answer(&self.call, status, &body))
    }

    /// Status and body of the final answer. Interim answers are skipped (RFC 9110 §15.2).
    pub(crate) fn whole_answer(&mut self) -> Result<(u16, Vec<u8>), ClientError> {
        let (head, bytes) = self.head()?;
        let mut body = head.body_in(&bytes).to_vec();
        let wanted = head.body_bytes.unwrap_or(0);
        if wanted > MAX_BODY_BYTES {
            return Err(self.malformed("the body is too long"));
        }
        while body.len() < wanted {
            self.read(&mut body)?;
        }
        body.truncate(wanted);
        Ok((head.status, body))
    }

    /// Waits until the VMM begins to answer or closes the connection.
    #[cfg(feature = "server")]
    pub(crate) fn await_end(&mut self, patience: Duration) {
        self.deadline = Instant::now() + patience;
        // In every case the VMM has finished the call.
        drop(self.read(&mut Vec::new()));
    }

    /// The head of the final answer, and all bytes received from there on.
    pub(super) fn head(&mut self) -> Result<(Head, Vec<u8>), ClientError> {
        let mut bytes = Vec::new();
        let mut interim_bytes: usize = 0;
        loop {
            self.read(&mut bytes)?;
            loop {
                match parse_head(&bytes) {
                    Ok(Some(head)) if (100..200).contains(&head.status) => {
                        interim_bytes = interim_bytes.saturating_add(head.end);
                        bytes = head.body_in(&bytes).to_vec();
                    }
                    Ok(Some(head)) => return Ok((head, bytes)),
                    Ok(None) => break,
                    Err(what) => return Err(self.malformed(&what)),
                }
            }
            if bytes.len().saturating_add(interim_bytes) >= MAX_HEAD_BYTES {
                return Err(self.malformed("the head is too long"));
            }
        }
    }

    /// Returns the connection, for what follows the head.
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads the bytes that are available, at least one.
    fn read(&mut self, into: &mut Vec<u8>) -> Result<(), ClientError> {
        let mut some = [0; 4096];
        let left = self.left()?;
        let count = self
            .stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.read(&mut some))
            .map_err(|source| self.broken(source))?;
        if count == 0 {
            return Err(self.broken(io::ErrorKind::UnexpectedEof.into()));
        }
        into.extend_from_slice(some.get(..count).unwrap_or_default());
        Ok(())
    }

    fn left(&self) -> Result<Duration, ClientError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.late());
        }
        Ok(left)
    }

    fn late(&self) -> ClientError {
        ClientError::Late {
            call: self.call.clone(),
            patience: self.patience,
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.late(),
            _ => ClientError::Broken {
                call: self.call.clone(),
                source,
            },
        }
    }

    fn malformed(&self, what: &str) -> ClientError {
        ClientError::malformed(&self.call, what)
    }
}

/// Parses the head at the beginning of `bytes`. Returns `None` if it is incomplete.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let end = match response.parse(bytes).map_err(|error| error.to_string())? {
        httparse::Status::Complete(end) => end,
        httparse::Status::Partial => return Ok(None),
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body_bytes = length
        .map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
        .map(|text| text.parse().map_err(|_| format!("its length is {text:?}")))
        .transpose()?;
    Ok(Some(Head {
        status: response.code.unwrap_or_default(),
        end,
        body_bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_cloud_hypervisor_parse() {
        let bytes = b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
            Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        let head = parse_head(bytes).unwrap().unwrap();
        assert_eq!((head.status, head.body_bytes), (200, Some(2)));
        assert_eq!(bytes.get(head.end..), Some(b"{}".as_slice()));
        let empty = b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\n\r\n";
        let head = parse_head(empty).unwrap().unwrap();
        assert_eq!((head.status, head.body_bytes), (204, None));
    }

    #[test]
    fn an_incomplete_head_is_none() {
        assert_eq!(parse_head(b"HTTP/1.1 200 \r\nServ"), Ok(None));
    }

    #[test]
    fn other_protocols_are_refused() {
        assert!(parse_head(b"hello\r\n\r\n").is_err());
        let bytes = b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n";
        assert!(parse_head(bytes).unwrap_err().contains("-1"));
    }
}
