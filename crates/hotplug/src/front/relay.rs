//! One connection through a front.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::gate::{Gate, GatedCall, Passage};
use super::request::{BadRequest, Head, with_length};
use crate::descriptors::{MOST_DESCRIPTORS, receive, send};

/// How long a client may take from the first byte of a head, or of a body that is looked at, to its last.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// How long the other side may take to read what is written to it.
const WRITE_TIME: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 16 << 10;

/// A gate that decides about one call at a time, of all clients: what it said of one holds until the VMM has answered.
pub(super) struct Turnstile {
    gate: Arc<dyn Gate>,
    turn: Mutex<()>,
}

impl Turnstile {
    pub(super) fn new(gate: Arc<dyn Gate>) -> Self {
        Self {
            gate,
            turn: Mutex::default(),
        }
    }
}

/// Carries the bytes of one client to the VMM, and the VMM's to the client.
pub(super) struct Relay<'a> {
    client: UnixStream,
    vmm: UnixStream,
    gate: &'a Turnstile,
    /// A call that the gate let pass and the VMM has not answered: no other is decided about meanwhile.
    turn: Option<MutexGuard<'a, ()>>,
    /// What came from the client and has not been passed on.
    waiting: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// When the first of `waiting` came.
    since: Instant,
    /// Bytes of a body that pass unseen.
    body_left: usize,
    /// The VMM has a request that it has not begun to answer.
    unanswered: bool,
    /// The client was told to send its body.
    told_to_go_on: bool,
    /// The client has nothing more to say.
    heard_out: bool,
}

impl<'a> Relay<'a> {
    pub(super) fn new(client: UnixStream, vmm: UnixStream, gate: &'a Turnstile) -> Self {
        Self {
            client,
            vmm,
            gate,
            turn: None,
            waiting: Vec::new(),
            descriptors: Vec::new(),
            since: Instant::now(),
            body_left: 0,
            unanswered: false,
            told_to_go_on: false,
            heard_out: false,
        }
    }

    /// Carries until one side is done.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.client.set_write_timeout(Some(WRITE_TIME))?;
        self.vmm.set_write_timeout(Some(WRITE_TIME))?;
        loop {
            let (from_client, from_vmm) = self.wait()?;
            if from_vmm && !self.carry_back()? {
                return Ok(());
            }
            if from_client {
                self.listen()?;
            }
            self.pass_on()?;
        }
    }

    /// Whether the client is to be listened to: not while its last request has no answer.
    fn listens(&self) -> bool {
        !self.heard_out && (!self.unanswered || self.body_left > 0)
    }

    /// Waits until one side has something to say.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let wanted = if self.listens() {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        loop {
            let time = self.time_left()?;
            let mut fds = [
                PollFd::new(&self.client, wanted),
                PollFd::new(&self.vmm, PollFlags::IN),
            ];
            match poll(&mut fds, time.as_ref()) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let [client, vmm] = fds.map(|fd| fd.revents());
            if !self.listens() && client.contains(PollFlags::HUP) && vmm.is_empty() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            return Ok((self.listens() && !client.is_empty(), !vmm.is_empty()));
        }
    }

    /// How long the client still has for a request that it has begun.
    fn time_left(&self) -> io::Result<Option<Timespec>> {
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let left = REQUEST_TIME.saturating_sub(self.since.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left.try_into().map_err(io::Error::other)?))
    }

    /// Carries what the VMM says to the client, as it is; false if it has nothing more to say.
    fn carry_back(&mut self) -> io::Result<bool> {
        let mut bytes = [0; BUFFER_BYTES];
        let mut descriptors = Vec::new();
        let count = receive(&self.vmm, &mut bytes, &mut descriptors)?;
        let said = bytes.get(..count).unwrap_or_default();
        send(&self.client, said, descriptors)?;
        self.unanswered = false;
        self.turn = None;
        Ok(count > 0)
    }

    /// Hears what the client says. One that has nothing more to say may still want its answer.
    fn listen(&mut self) -> io::Result<()> {
        let mut bytes = [0; BUFFER_BYTES];
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        let count = receive(&self.client, &mut bytes, &mut self.descriptors)?;
        if self.descriptors.len() > MOST_DESCRIPTORS {
            return Err(io::Error::other("a request has too many descriptors"));
        }
        self.waiting
            .extend_from_slice(bytes.get(..count).unwrap_or_default());
        if count == 0 {
            self.heard_out = true;
            self.vmm.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Passes on of what waits all that may pass.
    fn pass_on(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            if self.body_left > 0 {
                let count = self.body_left.min(self.waiting.len());
                self.body_left -= count;
                self.forward(count)?;
                continue;
            }
            if self.unanswered {
                return Ok(());
            }
            let head = match Head::parse(&self.waiting) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                Err(error) => return self.reject(error),
            };
            match head.gated {
                None => {
                    // What came in one piece goes on in one piece.
                    let whole = head.len_bytes.saturating_add(head.body_bytes);
                    let count = whole.min(self.waiting.len());
                    self.body_left = whole - count;
                    self.unanswered = true;
                    self.forward(count)?;
                }
                Some(call) => {
                    if !self.decide(call, &head)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Passes on so many bytes, with all descriptors that came so far.
    fn forward(&mut self, count: usize) -> io::Result<()> {
        let rest = self.waiting.split_off(count);
        let bytes = std::mem::replace(&mut self.waiting, rest);
        send(&self.vmm, &bytes, std::mem::take(&mut self.descriptors))
    }

    /// Has a call decided about; false if its body is not complete.
    fn decide(&mut self, call: GatedCall, head: &Head) -> io::Result<bool> {
        let end = head.len_bytes.saturating_add(head.body_bytes);
        if self.waiting.len() < end {
            if head.expects && !self.told_to_go_on {
                send(&self.client, b"HTTP/1.1 100 Continue\r\n\r\n", Vec::new())?;
                self.told_to_go_on = true;
            }
            return Ok(false);
        }
        self.told_to_go_on = false;
        let gate = self.gate;
        let turn = gate.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let body = self.waiting.get(head.len_bytes..end).unwrap_or_default();
        match gate.gate.pass(call, body) {
            Passage::AsIs => {
                self.turn = Some(turn);
                self.unanswered = true;
                self.forward(end)?;
            }
            Passage::Instead(body) => {
                let request = self.waiting.drain(..end);
                let old = request.as_slice().get(..head.len_bytes).unwrap_or_default();
                let mut new = with_length(old, body.len());
                drop(request);
                new.extend_from_slice(&body);
                self.turn = Some(turn);
                self.unanswered = true;
                send(&self.vmm, &new, std::mem::take(&mut self.descriptors))?;
            }
            Passage::Refused { reasons } => self.answer(end, 409, call, reasons)?,
            Passage::Failed { messages } => {
                self.answer(end, 500, call, messages)?;
            }
        }
        Ok(true)
    }

    /// Answers in the VMM's place, as the VMM would: without a reason phrase, for cloud-hypervisor's client takes all that
    /// follows the version for the number of the status.
    fn answer(
        &mut self,
        end: usize,
        status: u16,
        call: GatedCall,
        reasons: Vec<String>,
    ) -> io::Result<()> {
        self.waiting.drain(..end);
        // Whoever sent them has copies.
        self.descriptors.clear();
        let mut messages = vec!["Error from API".to_owned(), call.attempt().to_owned()];
        messages.extend(reasons);
        let body = serde_json::to_string(&messages)?;
        let head = format!(
            "HTTP/1.1 {status} \r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        send(&self.client, (head + &body).as_bytes(), Vec::new())
    }

    /// Tells the client that it cannot be understood, and ends the connection.
    fn reject(&mut self, error: BadRequest) -> io::Result<()> {
        let body = serde_json::to_string(&["Error from API", &error.to_string()])?;
        let head = format!(
            "HTTP/1.1 400 \r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        send(&self.client, (head + &body).as_bytes(), Vec::new())?;
        Err(io::Error::other(error))
    }
}
