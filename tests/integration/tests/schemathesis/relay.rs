//! A unix socket in the lab host, served on a port of this machine: schemathesis knows no unix sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lab::Lab;

/// Each request is a program in the lab host that passes it on, and ends with the answer.
pub(crate) struct Relay<'a> {
    lab: &'a Lab,
    socket: &'a str,
}

impl<'a> Relay<'a> {
    pub(crate) fn new(lab: &'a Lab, socket: &'a str) -> Self {
        Self { lab, socket }
    }

    /// Serves for as long as `work` takes, which is told the port.
    pub(crate) fn serve<T>(&self, work: impl FnOnce(u16) -> T) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while let Ok((near, _)) = listener.accept() {
                    if done.load(Ordering::Acquire) {
                        return;
                    }
                    scope.spawn(move || self.pass(near));
                }
            });
            let result = work(address.port());
            done.store(true, Ordering::Release);
            // Nobody is to wait for one more.
            drop(TcpStream::connect(address));
            result
        })
    }

    /// Passes on one request; who goes away early is no failure of the test.
    fn pass(&self, mut near: TcpStream) {
        let Some(request) = read_request(&mut near) else {
            return;
        };
        let words = ["vm-call", self.socket];
        let answer = self.lab.command(words).stdin(request).run().unwrap();
        assert_eq!(answer.code(), Some(0), "{answer:?}");
        let _ = near.write_all(answer.stdout.as_bytes());
    }
}

/// A whole request, which asks for the connection to be closed after the answer; `None` if there is none.
fn read_request(near: &mut TcpStream) -> Option<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    let end = loop {
        if let Some(at) = head.windows(END.len()).position(|bytes| bytes == END) {
            break at + END.len();
        }
        let count = near.read(&mut piece).ok().filter(|count| *count > 0)?;
        head.extend_from_slice(&piece[..count]);
    };
    let mut body = head.split_off(end);
    let length = header(&head, "content-length");
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    let have = body.len().min(length);
    body.resize(length, 0);
    near.read_exact(&mut body[have..]).ok()?;
    let lines = head.split_inclusive(|byte| *byte == b'\n');
    let kept = lines.filter(|line| !name_is(line, "connection"));
    let mut whole = kept.collect::<Vec<_>>().concat();
    whole.truncate(whole.len() - 2);
    whole.extend_from_slice(b"Connection: close\r\n\r\n");
    whole.extend(body);
    Some(whole)
}

fn name_is(line: &[u8], name: &str) -> bool {
    let start = line.split_at_checked(name.len());
    start.is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(name.as_bytes()) && rest.starts_with(b":")
    })
}

fn header(head: &[u8], name: &str) -> Option<String> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.find(|line| name_is(line, name))?;
    let value = &line[name.len() + 1..];
    Some(String::from_utf8_lossy(value).trim().to_owned())
}
