//! The harness's end of the connection to the agent in a lab host.

mod command;
mod transcript;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::protocol::{Reply, Request, read_frame, write_frame};
pub use command::{Command, Output, Running};
pub(crate) use transcript::Transcript;

/// Timeout for writing a request, and for the answer to a request that itself takes no time.
const ANSWER: Duration = Duration::from_secs(60);

/// Interval at which the agent is sent a message, even if no request is pending.
///
/// QEMU 10's TCG changes a processor's pending interrupts on VMRUN and VMEXIT without a lock (`do_vmexit` in
/// target/i386/tcg/system/svm_helper.c). An interrupt that a device raises at that instant is lost: it stays in the
/// local APIC, and the processor may halt for good. Any later interrupt makes the APIC check again, so the messages
/// ensure that one follows.
const NUDGE: Duration = Duration::from_millis(500);

type Answer = (Reply, Vec<u8>);

/// A connection to an agent. Any number of threads may send requests at the same time.
pub(crate) struct Agent {
    writer: Arc<Mutex<UnixStream>>,
    pending: Arc<Mutex<Pending>>,
    hello: Mutex<Receiver<Answer>>,
    transcript: Transcript,
}

#[derive(Default)]
struct Pending {
    last: u64,
    waiting: BTreeMap<u64, Sender<Answer>>,
    /// Why no further request will be answered.
    gone: Option<String>,
}

impl Agent {
    /// Takes over the harness's end of the socket that QEMU connects to the agent's port.
    pub(crate) fn new(socket: UnixStream, transcript: Transcript) -> Result<Self> {
        socket
            .set_write_timeout(Some(ANSWER))
            .context("cannot set a time limit on the agent's socket")?;
        let mut reader = socket
            .try_clone()
            .context("cannot share the agent's socket")?;
        let (greet, hello) = mpsc::channel();
        let pending = Arc::new(Mutex::new(Pending {
            waiting: BTreeMap::from([(0, greet)]),
            ..Pending::default()
        }));
        let answers = Arc::clone(&pending);
        thread::Builder::new()
            .name("lab agent".into())
            .spawn(move || {
                let why = loop {
                    match read_frame::<Reply>(&mut reader) {
                        Ok(Some((envelope, payload))) => {
                            let asker = lock(&answers).waiting.remove(&envelope.id);
                            // The requester may have timed out and stopped waiting.
                            drop(asker.map(|asker| asker.send((envelope.body, payload))));
                        }
                        Ok(None) => break "the lab host is gone".to_owned(),
                        Err(error) => break format!("the line to the lab host broke: {error}"),
                    }
                };
                let mut pending = lock(&answers);
                pending.gone = Some(why);
                pending.waiting.clear();
            })
            .context("cannot start a thread")?;
        Ok(Self {
            writer: Arc::new(Mutex::new(socket)),
            pending,
            hello: Mutex::new(hello),
            transcript,
        })
    }

    /// Waits up to `wait` for the agent's greeting; `None` if it has not arrived yet.
    pub(crate) fn greeting(&self, wait: Duration) -> Result<Option<(String, Duration)>> {
        let hello = self.hello.lock().unwrap_or_else(PoisonError::into_inner);
        match hello.recv_timeout(wait) {
            Ok((Reply::Hello { kernel, uptime_ms }, _)) => {
                nudge(Arc::downgrade(&self.writer)).context("cannot start a thread")?;
                Ok(Some((kernel, Duration::from_millis(uptime_ms))))
            }
            Ok((other, _)) => bail!("the agent began with {other:?}"),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
        }
    }

    /// Sends a request and waits for the answer. `extra` is the time that the request itself may take.
    pub(crate) fn ask(&self, request: &Request, payload: &[u8], extra: Duration) -> Result<Answer> {
        let (sender, answer) = mpsc::channel();
        let id = {
            let mut pending = lock(&self.pending);
            if pending.gone.is_some() {
                drop(pending);
                return Err(self.gone());
            }
            pending.last = pending.last.wrapping_add(1);
            let id = pending.last;
            pending.waiting.insert(id, sender);
            id
        };
        let sent = send(&self.writer, id, request, payload);
        if let Err(error) = sent {
            lock(&self.pending).waiting.remove(&id);
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe => self.gone(),
                _ => anyhow!(error).context("cannot send to the lab host"),
            });
        }
        let limit = ANSWER.saturating_add(extra);
        match answer.recv_timeout(limit) {
            Ok((Reply::Failed { message }, _)) => bail!("lab host: {message}"),
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
            Err(RecvTimeoutError::Timeout) => {
                lock(&self.pending).waiting.remove(&id);
                bail!("the lab host did not answer within {} s", limit.as_secs())
            }
        }
    }

    fn gone(&self) -> anyhow::Error {
        let why = lock(&self.pending).gone.clone();
        anyhow!(why.unwrap_or_else(|| "the lab host is gone".to_owned()))
    }
}

fn send(writer: &Mutex<UnixStream>, id: u64, request: &Request, payload: &[u8]) -> io::Result<()> {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    write_frame(&mut *writer, id, request, payload)
}

/// Sends a [`Request::Nudge`] every [`NUDGE`] while both ends of the connection exist.
fn nudge(writer: Weak<Mutex<UnixStream>>) -> io::Result<()> {
    let nudging = move || {
        // Uses the greeting's id: no thread waits for these answers.
        while let Some(writer) = writer.upgrade()
            && send(&writer, 0, &Request::Nudge, &[]).is_ok()
        {
            drop(writer);
            thread::sleep(NUDGE);
        }
    };
    let thread = thread::Builder::new().name("lab nudge".into());
    thread.spawn(nudging).map(drop)
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn connected() -> (Agent, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let transcript = Transcript::create(Path::new("/dev/null")).unwrap();
        (Agent::new(ours, transcript).unwrap(), theirs)
    }

    fn get(path: &str) -> Request {
        Request::Get {
            path: path.into(),
            offset: 0,
        }
    }

    #[test]
    fn answers_find_their_askers_in_any_order() {
        let (agent, mut far) = connected();
        let server = thread::spawn(move || {
            let (first, _) = read_frame::<Request>(&mut far).unwrap().unwrap();
            let (second, _) = read_frame::<Request>(&mut far).unwrap().unwrap();
            for envelope in [second, first] {
                let Request::Get { path, .. } = envelope.body else {
                    panic!("unexpected {:?}", envelope.body);
                };
                let reply = Reply::Content { end: true };
                write_frame(&mut far, envelope.id, &reply, path.as_bytes()).unwrap();
            }
        });
        thread::scope(|scope| {
            for path in ["/a", "/b"] {
                let agent = &agent;
                scope.spawn(move || {
                    let (_, payload) = agent.ask(&get(path), &[], Duration::ZERO).unwrap();
                    assert_eq!(payload, path.as_bytes());
                });
            }
        });
        server.join().unwrap();
    }

    #[test]
    fn a_refusal_is_an_error_with_the_agents_words() {
        let (agent, mut far) = connected();
        let server = thread::spawn(move || {
            let (asked, _) = read_frame::<Request>(&mut far).unwrap().unwrap();
            let message = "cannot read /a: No such file".to_owned();
            write_frame(&mut far, asked.id, &Reply::Failed { message }, &[]).unwrap();
        });
        let error = agent.ask(&get("/a"), &[], Duration::ZERO).unwrap_err();
        assert_eq!(error.to_string(), "lab host: cannot read /a: No such file");
        server.join().unwrap();
    }

    #[test]
    fn who_waits_is_told_when_the_host_dies() {
        let (agent, mut far) = connected();
        let server = thread::spawn(move || {
            read_frame::<Request>(&mut far).unwrap().unwrap();
            drop(far);
        });
        let error = agent.ask(&get("/a"), &[], Duration::ZERO).unwrap_err();
        assert_eq!(error.to_string(), "the lab host is gone");
        server.join().unwrap();
        let error = agent.ask(&get("/b"), &[], Duration::ZERO).unwrap_err();
        assert_eq!(error.to_string(), "the lab host is gone");
    }

    #[test]
    fn a_greeting_that_has_not_come_is_no_error_and_nudges_follow_it() {
        let (agent, mut far) = connected();
        assert!(agent.greeting(Duration::from_millis(1)).unwrap().is_none());
        let hello = Reply::Hello {
            kernel: "7.2".into(),
            uptime_ms: 1500,
        };
        write_frame(&mut far, 0, &hello, &[]).unwrap();
        let greeting = agent.greeting(Duration::from_secs(10)).unwrap().unwrap();
        assert_eq!(greeting, ("7.2".to_owned(), Duration::from_millis(1500)));
        for _ in 0..2 {
            let (asked, _) = read_frame::<Request>(&mut far).unwrap().unwrap();
            assert_eq!(asked.body, Request::Nudge);
        }
    }
}
