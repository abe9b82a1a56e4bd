mod dialect;
mod flood;
mod limits;
mod proxy;
mod socket;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `bytes` and reads until the connection ends; the request asks for that.
fn ask(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = connect(socket);
    stream.write_all(bytes).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A request as cloud-hypervisor's client sends it, with `Connection: close`.
fn request(verb: &str, call: &str, body: &str) -> Vec<u8> {
    let length = match body {
        "" => String::new(),
        body => format!("Content-Length: {}\r\n", body.len()),
    };
    format!(
        "{verb} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n{length}\r\n{body}"
    )
    .into_bytes()
}

fn status(answer: &str) -> &str {
    answer.lines().next().unwrap_or_default()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
