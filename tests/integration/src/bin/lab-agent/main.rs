//! Agent of the harness in the lab host: runs commands and transfers files, on requests over a virtio-serial port.
//!
//! `lab-agent` looks for the port named [`PORT_NAME`] and serves it until the harness disconnects. Each request has its
//! own thread, so a waiting request does not delay others. The number of outstanding requests is bounded.

mod file;
mod process;
mod table;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::protocol::{PORT_NAME, Reply, Request, read_frame, write_frame};

use crate::process::Process;
use crate::table::Table;

/// Maximum number of requests in progress; further ones are refused.
const MAX_OUTSTANDING: usize = 64;

/// How long the port may take to appear after the kernel started init.
const PORT_WAIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// State that the agent's threads share.
struct Agent {
    port: Mutex<File>,
    outstanding: AtomicUsize,
    table: Table,
}

fn serve() -> io::Result<()> {
    let path = find_port()?;
    let port = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut requests = port.try_clone()?;
    let agent = Arc::new(Agent {
        port: Mutex::new(port),
        outstanding: AtomicUsize::new(0),
        table: Table::default(),
    });
    agent.reply(0, &greeting()?, &[])?;
    while let Some((envelope, payload)) = read_frame::<Request>(&mut requests)? {
        let worker = Arc::clone(&agent);
        if agent.outstanding.fetch_add(1, Ordering::SeqCst) >= MAX_OUTSTANDING {
            agent.outstanding.fetch_sub(1, Ordering::SeqCst);
            let message = format!("more than {MAX_OUTSTANDING} requests at one time");
            agent.reply(envelope.id, &Reply::Failed { message }, &[])?;
            continue;
        }
        thread::Builder::new()
            .name(format!("request {}", envelope.id))
            .spawn(move || {
                let (reply, payload) = worker.carry_out(envelope.body, payload);
                if let Err(error) = worker.reply(envelope.id, &reply, &payload) {
                    eprintln!("lab-agent: cannot answer request {}: {error}", envelope.id);
                }
                worker.outstanding.fetch_sub(1, Ordering::SeqCst);
            })?;
    }
    Ok(())
}

impl Agent {
    fn reply(&self, id: u64, reply: &Reply, payload: &[u8]) -> io::Result<()> {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut *port, id, reply, payload)
    }

    fn carry_out(&self, request: Request, payload: Vec<u8>) -> (Reply, Vec<u8>) {
        let result = match request {
            Request::Nudge => Ok((Reply::Done, Vec::new())),
            Request::Run(invocation) => Process::start(&invocation, payload)
                .map(|process| process.wait().into_reply())
                .map_err(|error| format!("cannot run {:?}: {error}", invocation.argv)),
            Request::Spawn(invocation) => Process::start(&invocation, payload)
                .and_then(|process| self.table.insert(process))
                .map(|process| (Reply::Spawned { process }, Vec::new()))
                .map_err(|error| format!("cannot start {:?}: {error}", invocation.argv)),
            Request::Poll { process, wait_ms } => self
                .table
                .poll(process, Duration::from_millis(wait_ms))
                .map(process::Report::into_reply)
                .map_err(|error| format!("cannot poll process {process}: {error}")),
            Request::Signal { process, signal } => self
                .table
                .signal(process, signal)
                .map(|()| (Reply::Done, Vec::new()))
                .map_err(|error| {
                    format!("cannot send signal {signal} to process {process}: {error}")
                }),
            Request::Put { path, mode, offset } => file::put(&path, mode, offset, &payload)
                .map(|()| (Reply::Done, Vec::new()))
                .map_err(|error| format!("cannot write {path}: {error}")),
            Request::Get { path, offset } => file::get(&path, offset)
                .map(|(content, end)| (Reply::Content { end }, content))
                .map_err(|error| format!("cannot read {path}: {error}")),
        };
        result.unwrap_or_else(|message| (Reply::Failed { message }, Vec::new()))
    }
}

/// Path of the port's character device. The lab host has no udev that creates `/dev/virtio-ports/`, so the name is
/// looked up where udev's rule reads it.
fn find_port() -> io::Result<PathBuf> {
    let started = Instant::now();
    loop {
        let ports = fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten();
        for entry in ports.flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim_end() == PORT_NAME {
                return Ok(PathBuf::from("/dev").join(entry.file_name()));
            }
        }
        if started.elapsed() > PORT_WAIT {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no virtio-serial port is named {PORT_NAME}"),
            ));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn greeting() -> io::Result<Reply> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    Ok(Reply::Hello {
        kernel: kernel.trim_end().to_owned(),
        uptime_ms: parse_uptime_ms(&uptime).unwrap_or_default(),
    })
}

/// Parses `/proc/uptime`, which starts with seconds and hundredths.
fn parse_uptime_ms(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_ascii_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = hundredths.parse().ok()?;
    seconds
        .parse::<u64>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(hundredths.checked_mul(10)?)
}

#[cfg(test)]
mod tests {
    use super::parse_uptime_ms;

    #[test]
    fn uptime_is_read_in_milliseconds() {
        assert_eq!(parse_uptime_ms("12.34 20.01\n"), Some(12_340));
        assert_eq!(parse_uptime_ms("nonsense"), None);
        assert_eq!(parse_uptime_ms("18446744073709551615.00 1"), None);
    }
}
