//! What clients ask, on its way to the owner of the VM and back.

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

/// Calls that the owner of the VM may find at once. Those of other connections wait in the order in which they came.
const WAITING: usize = 64;

/// Something that a client asks of the owner of the VM, who answers through the [`Reply`].
#[derive(Debug)]
pub enum Call {
    /// Whether somebody is there.
    Ping(Reply<VmmPing>),
    /// The end of the VMM.
    ShutdownVmm(Reply<()>),
    /// To have a VM, not yet running.
    Create(Box<VmConfig>, Reply<()>),
    /// To start the VM.
    Boot(Reply<()>),
    /// To stop the VM, and keep its description.
    Shutdown(Reply<()>),
    /// To forget the VM.
    Delete(Reply<()>),
    /// To start the VM again from its beginning.
    Reboot(Reply<()>),
    /// To stop the vCPUs.
    Pause(Reply<()>),
    /// To start the vCPUs again.
    Resume(Reply<()>),
    /// To tell the guest that somebody pressed its power button.
    PowerButton(Reply<()>),
    /// How the VM is.
    Info(Reply<VmInfo>),
    /// What there is to count, by device.
    Counters(Reply<Counters>),
    /// Who may reach whom.
    P2p(Reply<P2pInfo>),
    /// To let the peers of a device reach it, or no more.
    P2pWindows(P2pWindows, Reply<()>),
    /// To add a device, which may have come open; its place in the guest, if there is a guest.
    AddDevice(DeviceConfig, Option<OwnedFd>, Reply<Option<PciDevice>>),
    /// To ask the guest to let go of a device.
    RemoveDevice(RemoveDevice, Reply<()>),
}

/// What there is to count: for every device its counters.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;

/// Where the answer to one call goes.
#[derive(Debug)]
pub struct Reply<T>(oneshot::Sender<Result<T, Failure>>);

impl<T> Reply<T> {
    /// Answers. A client that went away in the meantime does not matter.
    pub fn send(self, answer: Result<T, Failure>) {
        let _ = self.0.send(answer);
    }
}

/// The owner's end of the calls.
pub struct CallQueue {
    calls: Mutex<Receiver<Call>>,
    event: Arc<EventFd>,
}

/// The API's end of the calls.
#[derive(Clone)]
pub(super) struct Caller {
    calls: Sender<Call>,
    event: Arc<EventFd>,
}

/// Both ends of a new queue.
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
    /// Readable when there are calls.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The next call, if there is one.
    pub fn next(&self) -> Option<Call> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.try_recv().ok()
    }
}

impl Caller {
    /// Hands over the call that `make` makes when it is its turn, and waits for its answer.
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
