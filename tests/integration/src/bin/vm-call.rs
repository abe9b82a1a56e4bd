//! One call of a VMM's API: HTTP over a unix socket.
//!
//! ```text
//! vm-call SOCKET GET|PUT CALL [BODY]     prints the status, then the body in lines of their own
//! vm-call SOCKET                         passes on what it reads, and prints what comes back, as they are
//! ```

use std::io::{Read, Write, copy, stdin, stdout};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [socket] => pass_on(connect(socket)?),
        [socket, verb, call] => ask(connect(socket)?, verb, call, ""),
        [socket, verb, call, body] => ask(connect(socket)?, verb, call, body),
        _ => bail!("usage: vm-call SOCKET [GET|PUT CALL [BODY]]"),
    }
}

fn connect(socket: &str) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {socket}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn pass_on(mut stream: UnixStream) -> Result<()> {
    copy(&mut stdin(), &mut stream)?;
    copy(&mut stream, &mut stdout())?;
    Ok(())
}

fn ask(mut stream: UnixStream, verb: &str, call: &str, body: &str) -> Result<()> {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    write!(
        stream,
        "{verb} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split_ascii_whitespace().nth(1);
    println!("{}\n{body}", status.context("no HTTP status")?);
    Ok(())
}
