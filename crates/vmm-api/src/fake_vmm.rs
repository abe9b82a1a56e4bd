//! Fake VMM for API tests: answers calls like a VMM whose VM runs with one device. If a device comes with a descriptor,
//! it writes the device's name to the descriptor.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::{ApiServer, Call, CallQueue, Failure, PciDevice, VmmPing};
use crate::{Event, EventLog};

/// Interval at which it looks for calls.
const LOOK: Duration = Duration::from_millis(1);
/// The call that adds a device of this name gets no answer.
pub(crate) const STALLS: &str = "stalls";
/// A device of this name is refused.
pub(crate) const REFUSED: &str = "refused";
/// The reason of the refusal.
pub(crate) const REASON: &str =
    "0000:03:00.0 and 0000:04:00.0 cannot share P2P: IOMMU group 5 and group 6";

/// A fake VMM in a thread.
pub(crate) struct FakeVmm {
    pub(crate) events: EventLog,
    server: Option<ApiServer>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    dir: TempDir,
}

impl FakeVmm {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = EventLog::new();
        let (server, calls) =
            ApiServer::start(&dir.path().join("socket"), &events, || Ok(())).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let log = events.clone();
        let thread = std::thread::spawn(move || serve(&calls, &log, &ended));
        Self {
            events,
            server: Some(server),
            done,
            thread: Some(thread),
            dir,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops the API server. The thread that answers calls goes on.
    pub(crate) fn stop_serving(&mut self) {
        self.server = None;
    }
}

impl Drop for FakeVmm {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(calls: &CallQueue, events: &EventLog, done: &AtomicBool) {
    let mut stalled = Vec::new();
    while !done.load(Ordering::Acquire) {
        while let Some(call) = calls.next() {
            stalled.extend(answer(call, events));
        }
        std::thread::sleep(LOOK);
    }
}

/// Answers a call, or returns it if it stays unanswered.
fn answer(call: Call, events: &EventLog) -> Option<Call> {
    match call {
        Call::Ping(reply) => reply.send(Ok(VmmPing {
            build_version: "fake".to_owned(),
            version: "1".to_owned(),
            pid: 1,
            features: Vec::new(),
        })),
        Call::Create(_, reply) => reply.send(Err(Failure::AlreadyCreated)),
        Call::ShutdownVmm(reply)
        | Call::Boot(reply)
        | Call::Shutdown(reply)
        | Call::Delete(reply)
        | Call::Reboot(reply)
        | Call::Pause(reply)
        | Call::Resume(reply)
        | Call::PowerButton(reply) => reply.send(Ok(())),
        Call::Info(reply) => reply.send(Err(Failure::NotCreated)),
        Call::P2p(reply) => reply.send(Err(Failure::NotCreated)),
        Call::Counters(reply) => reply.send(Ok(Default::default())),
        Call::AddDevice(device, file, reply) => match device.id.as_deref() {
            Some(STALLS) => return Some(Call::AddDevice(device, file, reply)),
            Some(REFUSED) => {
                let reasons = vec![REASON.to_owned()];
                reply.send(Err(Failure::Refused { reasons }));
            }
            Some(id) => {
                if let Some(file) = file {
                    File::from(file).write_all(id.as_bytes()).unwrap();
                }
                let id = id.to_owned();
                let bdf = "0000:02:00.0".to_owned();
                let event = Event::DeviceAdded {
                    id: id.clone(),
                    bdf: bdf.clone(),
                };
                events.publish(&event);
                reply.send(Ok(Some(PciDevice { id, bdf })));
            }
            None => reply.send(Ok(None)),
        },
        Call::P2pWindows(request, reply) => {
            reply.send(Err(Failure::UnknownDevice(request.id)));
        }
        Call::RemoveDevice(request, reply) => {
            reply.send(Err(Failure::UnknownDevice(request.id)));
        }
    }
    None
}
