//! Calls of clients on their way to the thread that owns the VM, and the replies.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::failure::Failure;
use super::p2p::P2pInfo;
use super::types::{P2pWindows, PciDevice, RemoveDevice, VmInfo, VmmPing};
use crate::{DeviceConfig, VmConfig};

/// Size of the queue of calls. Further calls wait in the order of their arrival.
const WAITING: usize = 64;

/// A call of a client. The owner of the VM answers it through the [`Reply`].
#[derive(Debug)]
pub enum Call {
    /// Returns the version of the VMM.
    Ping(Reply<VmmPing>),
    /// Ends the VMM.
    ShutdownVmm(Reply<()>),
    /// Creates a VM. It does not run yet.
    Create(Box<VmConfig>, Reply<()>),
    /// Starts the VM.
    Boot(Reply<()>),
    /// Stops the VM and keeps its configuration.
    Shutdown(Reply<()>),
    /// Deletes the VM and its configuration.
    Delete(Reply<()>),
    /// Starts the VM again from its beginning.
    Reboot(Reply<()>),
    /// Stops the vCPUs.
    Pause(Reply<()>),
    /// Starts the vCPUs again.
    Resume(Reply<()>),
    /// Presses the guest's power button.
    PowerButton(Reply<()>),
    /// Returns configuration and state of the VM.
    Info(Reply<VmInfo>),
    /// Returns the counters of all devices.
    Counters(Reply<Counters>),
    /// Returns the P2P domains, routes and exposures.
    P2p(Reply<P2pInfo>),
    /// Opens or closes the mappings through which peers reach a device.
    P2pWindows(P2pWindows, Reply<()>),
    /// Adds a device, with its descriptor if one came with the request. Returns its place in the guest if the VM runs.
    AddDevice(DeviceConfig, Option<OwnedFd>, Reply<Option<PciDevice>>),
    /// Asks the guest to release a device.
    RemoveDevice(RemoveDevice, Reply<()>),
}

/// Counters by name, by device.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;

/// Destination of the answer to one call.
#[derive(Debug)]
pub struct Reply<T>(oneshot::Sender<Result<T, Failure>>);

impl<T> Reply<T> {
    /// Sends the answer. It is dropped if the client has gone.
    pub fn send(self, answer: Result<T, Failure>) {
        let _ = self.0.send(answer);
    }
}

/// The receiving end of the calls, for the owner of the VM.
pub struct CallQueue {
    calls: Mutex<Receiver<Call>>,
    event: Arc<EventFd>,
}

/// The sending end of the calls, for the API thread.
#[derive(Clone)]
pub(super) struct Caller {
    calls: Sender<Call>,
    event: Arc<EventFd>,
}

/// Creates a queue and returns both ends.
pub(super) fn queue() -> io::Result<(Caller, CallQueue)> {
    let (sender, receiver) = channel(WAITING);
    let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let caller = Caller {
        calls: sender,
        event: Arc::clone(&event),
    };
    let queue = CallQueue {
        calls: Mutex::new(receiver),
        event,
    };
    Ok((caller, queue))
}

impl CallQueue {
    /// Readable when calls are waiting.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The next call, if one is waiting.
    pub fn next(&self) -> Option<Call> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.try_recv().ok()
    }
}

impl Caller {
    /// Queues the call that `make` builds and waits for the answer.
    pub(super) async fn call<T>(&self, make: impl FnOnce(Reply<T>) -> Call) -> Result<T, Failure> {
        let (sender, answer) = oneshot::channel();
        let sent = self.calls.send(make(Reply(sender))).await;
        sent.map_err(|_| Failure::Ending)?;
        if let Err(error) = self.event.write(1) {
            log::error!("cannot wake the main thread for a call: {error}");
        }
        answer.await.unwrap_or(Err(Failure::Ending))
    }
}
