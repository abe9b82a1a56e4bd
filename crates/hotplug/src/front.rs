//! A gate in front of a VMM's API: who points a client at it gets admission, and notices nothing else.
//!
//! ```text
//! client ──▶ front ──▶ VMM        all bytes and descriptors as they are, but
//!              │
//!              └─ Gate            vm.create, vm.add-device and vm.remove-device are shown to it first: it lets them pass,
//!                                 changes what they say, or refuses them with 409
//! ```
//! A thread for each connection carries bytes both ways; requests are looked at, answers are not. While a request has no
//! answer yet the next one is left waiting, so that a refusal never overtakes an answer.

mod gate;
mod relay;
mod request;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

pub use gate::{Gate, GatedCall, Passage};

use crate::SocketError;
use crate::socket::ApiSocket;
use relay::{Relay, Turnstile};

/// Connections that are served at a time: cloud-hypervisor itself serves ten.
const MOST_CONNECTIONS: usize = 32;
/// How long to wait when no connection can be accepted, such as for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A front. Dropped, it accepts no more connections; those that are open are served to their end.
pub struct Front {
    /// The other end is the doorman's, who goes when this is closed.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// Serves clients at the socket `path`, which is for root and this user only; the VMM listens at `vmm`.
    ///
    /// # Errors
    /// There can be no socket there, or no thread.
    pub fn start(path: &Path, vmm: PathBuf, gate: Arc<dyn Gate>) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        let socket = ApiSocket::bind(path)?;
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let doorman = Doorman {
            listener: socket.listener().map_err(failed)?,
            _socket: socket,
            vmm,
            gate: Arc::new(Turnstile::new(gate)),
            stopped,
            connections: Arc::default(),
        };
        let thread = thread::Builder::new()
            .name("front".to_owned())
            .spawn(move || doorman.serve())
            .map_err(failed)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Waits until it can serve no more: for a program that does nothing else.
    pub fn join(mut self) {
        self.wait();
    }

    fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there was told by itself.
            drop(thread.join());
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.wait();
    }
}

/// Who lets connections in.
struct Doorman {
    listener: UnixListener,
    /// Removes the socket when nobody is let in any more.
    _socket: ApiSocket,
    vmm: PathBuf,
    gate: Arc<Turnstile>,
    stopped: UnixStream,
    connections: Arc<AtomicUsize>,
}

impl Doorman {
    fn serve(self) {
        loop {
            match self.someone_waits() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    log::error!("a front cannot wait for connections: {error}");
                    return;
                }
            }
            match self.listener.accept() {
                Ok((client, _)) => self.admit(client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("a front cannot accept a connection: {error}");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Waits for a connection; false if it is time to stop.
    fn someone_waits(&self) -> Result<bool, Errno> {
        let mut fds = [
            PollFd::new(&self.stopped, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(error) => return Err(error),
        }
        let [stopped, _] = &fds;
        Ok(stopped.revents().is_empty())
    }

    fn admit(&self, client: UnixStream) {
        let Some(place) = Place::take(&self.connections) else {
            log::warn!("a front closes a connection: it has {MOST_CONNECTIONS} already");
            return;
        };
        let vmm = match UnixStream::connect(&self.vmm) {
            Ok(vmm) => vmm,
            Err(error) => {
                // The client finds its connection closed, as by a VMM that is gone.
                log::warn!("cannot connect to {}: {error}", self.vmm.display());
                return;
            }
        };
        let gate = Arc::clone(&self.gate);
        let spawned = thread::Builder::new()
            .name("front-relay".to_owned())
            .spawn(move || {
                let _place = place;
                if let Err(error) = Relay::new(client, vmm, &gate).run() {
                    log::debug!("a connection through a front ended: {error}");
                }
            });
        if let Err(error) = spawned {
            log::warn!("no thread for a connection: {error}");
        }
    }
}

/// One of the connections that there may be.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(count));
        let before = count.fetch_add(1, Ordering::Relaxed);
        (before < MOST_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
