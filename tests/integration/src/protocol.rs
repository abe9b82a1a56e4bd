//! Protocol between the harness and the agent in the lab host.
//!
//! A frame is a little-endian `u32` with the size of the header in bytes, a `u32` with the size of the payload in
//! bytes, the header as JSON, and the payload as it is. Every request carries an id and is answered by exactly one
//! reply with that id. Replies may come in any order, so a slow command does not delay a quick one. Both sides bound
//! all sizes and trust no input of the other side.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port, in QEMU's arguments and in sysfs.
pub const PORT_NAME: &str = "lab.agent";

/// Largest header accepted, in bytes: command lines and environments.
pub const MAX_HEADER_BYTES: usize = 1 << 20;

/// Largest payload accepted, in bytes: two captured streams at their limit, or one file chunk.
pub const MAX_PAYLOAD_BYTES: usize = 40 << 20;

/// Number of bytes kept of each output stream of a command; the rest is dropped and the reply reports it.
pub const MAX_CAPTURE_BYTES: usize = 16 << 20;

/// Size of the pieces in which files are transferred, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;

/// A request of the harness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Does nothing; only its arrival matters.
    Nudge,
    /// Runs a command until it ends. The payload is its standard input.
    Run(Invocation),
    /// Starts a command and leaves it running. The payload is its standard input.
    Spawn(Invocation),
    /// Returns the output of a spawned command since the last poll, and whether it has ended.
    Poll {
        /// Handle from [`Reply::Spawned`].
        process: u64,
        /// How long to wait for output or the end of the command, in milliseconds.
        wait_ms: u64,
    },
    /// Sends a signal to the process group of a spawned command.
    Signal {
        /// Handle from [`Reply::Spawned`].
        process: u64,
        /// Signal number.
        signal: i32,
    },
    /// Writes the payload into a file at `offset`. Offset 0 creates or truncates it.
    Put {
        /// Absolute path. Missing directories are created.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Offset of the payload in the file, in bytes.
        offset: u64,
    },
    /// Reads at most [`CHUNK_BYTES`] of a file.
    Get {
        /// Absolute path.
        path: String,
        /// Offset of the first byte to read.
        offset: u64,
    },
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invocation {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables added to the agent's environment.
    pub env: Vec<(String, String)>,
    /// The command's whole process group is killed after this many milliseconds.
    pub timeout_ms: u64,
}

/// A reply of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// Sent once, with id 0, when the agent is ready.
    Hello {
        /// `uname -r` of the lab host.
        kernel: String,
        /// Time since the lab host's kernel started, in milliseconds.
        uptime_ms: u64,
    },
    /// Output of a command; the payload is its standard output followed by its standard error.
    Output {
        /// How it ended, if it has.
        exit: Option<Exit>,
        /// Size of the part of the payload that is standard output, in bytes.
        stdout_bytes: usize,
        /// Whether output beyond [`MAX_CAPTURE_BYTES`] was dropped.
        truncated: bool,
    },
    /// A command was started.
    Spawned {
        /// Handle for [`Request::Poll`] and [`Request::Signal`].
        process: u64,
    },
    /// The request was carried out; there is no result.
    Done,
    /// The payload is the requested part of the file.
    Content {
        /// Whether this is the last part of the file.
        end: bool,
    },
    /// The request failed.
    Failed {
        /// The attempted operation and the system's error.
        message: String,
    },
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It ran over its deadline and was killed.
    TimedOut,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(out, "exit code {code}"),
            Self::Signal(signal) => write!(out, "killed by signal {signal}"),
            Self::TimedOut => write!(out, "killed at its deadline"),
        }
    }
}

/// A message with the id that links a reply to its request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope<T> {
    /// Chosen by the harness; 0 is the agent's greeting.
    pub id: u64,
    /// The message.
    pub body: T,
}

/// Writes one frame.
///
/// # Errors
/// `InvalidInput` if the message is larger than the protocol allows, else the error of the stream.
pub fn write_frame<T: Serialize>(
    stream: &mut impl Write,
    id: u64,
    body: &T,
    payload: &[u8],
) -> io::Result<()> {
    let header = serde_json::to_vec(&Envelope { id, body })?;
    let too_large = |what: &str, size: usize| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{what} of {size} bytes is larger than a frame may hold"),
        )
    };
    if header.len() > MAX_HEADER_BYTES {
        return Err(too_large("header", header.len()));
    }
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(too_large("payload", payload.len()));
    }
    let size = |part: &[u8]| u32::try_from(part.len()).map_err(|_| too_large("part", part.len()));
    let mut frame = Vec::with_capacity(8 + header.len() + payload.len());
    frame.extend_from_slice(&size(&header)?.to_le_bytes());
    frame.extend_from_slice(&size(payload)?.to_le_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(payload);
    stream.write_all(&frame)?;
    stream.flush()
}

/// Reads one frame; `None` at a clean end of the stream.
///
/// # Errors
/// `InvalidData` for a frame that violates the protocol, `UnexpectedEof` for one that is cut short, else the error of
/// the stream.
pub fn read_frame<T: DeserializeOwned>(
    stream: &mut impl Read,
) -> io::Result<Option<(Envelope<T>, Vec<u8>)>> {
    let mut first = [0_u8; 1];
    loop {
        match stream.read(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let [a] = first;
    let mut rest = [0_u8; 7];
    stream.read_exact(&mut rest)?;
    let [b, c, d, e, f, g, h] = rest;
    let header = read_part(
        stream,
        "header",
        u32::from_le_bytes([a, b, c, d]),
        MAX_HEADER_BYTES,
    )?;
    let payload = read_part(
        stream,
        "payload",
        u32::from_le_bytes([e, f, g, h]),
        MAX_PAYLOAD_BYTES,
    )?;
    Ok(Some((serde_json::from_slice(&header)?, payload)))
}

fn read_part(
    stream: &mut impl Read,
    what: &str,
    size_bytes: u32,
    limit_bytes: usize,
) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size_bytes)
        .ok()
        .filter(|size| *size <= limit_bytes)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{what} claims {size_bytes} bytes, {limit_bytes} are allowed"),
            )
        })?;
    let mut part = vec![0; size];
    stream.read_exact(&mut part)?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was_sent() {
        let request = Request::Put {
            path: "/tmp/x".into(),
            mode: 0o644,
            offset: 7,
        };
        let mut wire = Vec::new();
        write_frame(&mut wire, 3, &request, b"payload\0").unwrap();
        write_frame(&mut wire, 4, &request, b"").unwrap();
        let mut stream = wire.as_slice();
        let (envelope, payload) = read_frame::<Request>(&mut stream).unwrap().unwrap();
        assert_eq!(
            envelope,
            Envelope {
                id: 3,
                body: request
            }
        );
        assert_eq!(payload, b"payload\0");
        let (envelope, payload) = read_frame::<Request>(&mut stream).unwrap().unwrap();
        assert_eq!((envelope.id, payload.len()), (4, 0));
        assert!(read_frame::<Request>(&mut stream).unwrap().is_none());
    }

    #[test]
    fn a_frame_cut_short_is_an_error_at_every_length() {
        let mut wire = Vec::new();
        write_frame(&mut wire, 1, &Reply::Done, b"xyz").unwrap();
        for length in 1..wire.len() {
            let mut stream = wire.get(..length).unwrap();
            let error = read_frame::<Reply>(&mut stream).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "at {length}");
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let mut wire = Vec::new();
        wire.extend_from_slice(&2_u32.to_le_bytes());
        wire.extend_from_slice(&u32::MAX.to_le_bytes());
        wire.extend_from_slice(b"{}");
        let error = read_frame::<Reply>(&mut wire.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("payload claims 4294967295"));
    }

    #[test]
    fn an_unknown_message_is_refused() {
        let mut wire = Vec::new();
        write_frame(&mut wire, 1, &"reboot", b"").unwrap();
        let error = read_frame::<Request>(&mut wire.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
