//! Makes one call of a VMM's API: HTTP over a unix socket.
//!
//! ```text
//! vm-call SOCKET GET|PUT CALL [BODY [FILE]]   prints the status and, on separate lines, the body
//! vm-call SOCKET hold COUNT                   opens COUNT connections, prints `held`; ends when its input ends
//! vm-call SOCKET                              forwards its input unchanged, and prints the answer unchanged
//! ```
//!
//! FILE is opened for reading and writing; its descriptor is sent with the call.

use std::fs::File;
use std::io::{IoSlice, Read, Write, copy, stdin, stdout};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Timeout of an answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [socket] => pass_on(connect(socket)?),
        [socket, "hold", count] => hold(socket, count.parse()?),
        [socket, verb, call, rest @ ..] if rest.len() <= 2 => {
            ask(connect(socket)?, verb, call, rest)
        }
        _ => bail!("usage: vm-call SOCKET [hold COUNT|GET|PUT CALL [BODY [FILE]]]"),
    }
}

fn connect(socket: &str) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn hold(socket: &str, count: usize) -> Result<()> {
    let held: Vec<UnixStream> = (0..count).map(|_| connect(socket)).collect::<Result<_>>()?;
    println!("held");
    copy(&mut stdin(), &mut stdout())?;
    drop(held);
    Ok(())
}

fn pass_on(mut stream: UnixStream) -> Result<()> {
    copy(&mut stdin(), &mut stream)?;
    copy(&mut stream, &mut stdout())?;
    Ok(())
}

fn ask(mut stream: UnixStream, verb: &str, call: &str, rest: &[&str]) -> Result<()> {
    let body = rest.first().copied().unwrap_or_default();
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    let request = format!(
        "{verb} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n{body}"
    );
    let sent = match rest.get(1) {
        Some(path) => send_with(&stream, request.as_bytes(), path)?,
        None => 0,
    };
    stream.write_all(request.as_bytes().get(sent..).unwrap_or_default())?;
    let (head, body) = answer(&mut stream)?;
    let status = head.split_ascii_whitespace().nth(1);
    println!("{}\n{body}", status.context("no HTTP status")?);
    Ok(())
}

/// Reads head and body. cloud-hypervisor keeps the connection open, whatever the request says.
fn answer(stream: &mut UnixStream) -> Result<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some)?;
        bytes.extend_from_slice(some.get(..count).unwrap_or_default());
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            ensure!(count > 0, "no HTTP answer");
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_it = name.eq_ignore_ascii_case("content-length");
            is_it.then(|| value.trim().parse::<usize>().ok())?
        });
        let empty = head.split_ascii_whitespace().nth(1) == Some("204");
        let complete = empty || length.is_some_and(|length| body.len() >= length);
        if complete || count == 0 {
            return Ok((head.to_owned(), body.to_owned()));
        }
    }
}

/// Sends the beginning of `bytes` with the descriptor of the file. Returns the number of bytes sent.
fn send_with(stream: &UnixStream, bytes: &[u8], path: &str) -> Result<usize> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {path}"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    let message = SendAncillaryMessage::ScmRights(&fds);
    ensure!(rights.push(message), "no room for a descriptor");
    let bytes = [IoSlice::new(bytes)];
    Ok(sendmsg(stream, &bytes, &mut rights, SendFlags::empty())?)
}
