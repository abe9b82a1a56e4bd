//! The calls of cloud-hypervisor v51 to v54 that a proxy passes on (its `vmm/src/api/http/mod.rs`).

use std::time::Duration;

use hyper::Method;

use crate::GatedCall;
use crate::Verb;

/// For calls that are answered at once, though perhaps behind others.
const SHORT: Duration = Duration::from_secs(60);
/// For calls that wait for memory to be pinned or freed, or for a disk.
const LONG: Duration = Duration::from_secs(600);
/// For calls that copy the memory of a VM.
const COPY: Duration = Duration::from_secs(24 * 3600);

/// A call that is passed on.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) call: &'static str,
    verb: Verb,
    /// What the gate is asked about it; nothing if it cannot bring devices of the host.
    pub(super) gated: Option<GatedCall>,
    pub(super) takes_descriptors: bool,
    /// How long the VMM may take to answer.
    pub(super) patience: Duration,
}

impl Route {
    const fn new(call: &'static str, verb: Verb, patience: Duration) -> Self {
        Self {
            call,
            verb,
            gated: None,
            takes_descriptors: false,
            patience,
        }
    }

    const fn get(call: &'static str) -> Self {
        Self::new(call, Verb::Get, SHORT)
    }

    const fn put(call: &'static str, patience: Duration) -> Self {
        Self::new(call, Verb::Put, patience)
    }

    const fn gated(self, call: GatedCall) -> Self {
        Self {
            gated: Some(call),
            ..self
        }
    }

    const fn with_descriptors(self) -> Self {
        Self {
            takes_descriptors: true,
            ..self
        }
    }

    /// The route of a call; none for one that is not passed on.
    pub(super) fn of(call: &str) -> Option<&'static Self> {
        ROUTES.iter().find(|route| route.call == call)
    }

    pub(super) fn method(&self) -> Method {
        match self.verb {
            Verb::Get => Method::GET,
            Verb::Put => Method::PUT,
        }
    }
}

/// All of them. `vm.add-user-device` and the calls for vhost-user bring devices of other processes: those get guest memory, and
/// no function of the host does.
const ROUTES: &[Route] = &[
    Route::get("vmm.ping"),
    Route::get("vm.info"),
    Route::get("vm.counters"),
    Route::put("vm.create", SHORT).gated(GatedCall::Create),
    Route::put("vm.add-device", LONG)
        .gated(GatedCall::AddDevice)
        .with_descriptors(),
    Route::put("vm.remove-device", SHORT).gated(GatedCall::RemoveDevice),
    Route::put("vm.restore", COPY)
        .gated(GatedCall::Restore)
        .with_descriptors(),
    Route::put("vm.receive-migration", COPY).gated(GatedCall::ReceiveMigration),
    Route::put("vm.add-net", LONG).with_descriptors(),
    Route::put("vm.add-disk", LONG),
    Route::put("vm.add-fs", LONG),
    Route::put("vm.add-generic-vhost-user", LONG),
    Route::put("vm.add-pmem", LONG),
    Route::put("vm.add-user-device", LONG),
    Route::put("vm.add-vdpa", LONG).gated(GatedCall::AddVdpa),
    Route::put("vm.add-vsock", LONG),
    Route::put("vm.boot", LONG).gated(GatedCall::Boot),
    Route::put("vm.coredump", COPY),
    Route::put("vm.delete", LONG),
    Route::put("vm.nmi", SHORT),
    Route::put("vm.pause", LONG),
    Route::put("vm.power-button", SHORT),
    Route::put("vm.reboot", LONG).gated(GatedCall::Reboot),
    Route::put("vm.resize", LONG),
    Route::put("vm.resize-disk", LONG),
    Route::put("vm.resize-zone", LONG),
    Route::put("vm.resume", SHORT),
    Route::put("vm.send-migration", COPY),
    Route::put("vm.shutdown", LONG),
    Route::put("vm.snapshot", COPY),
    Route::put("vmm.shutdown", LONG),
];
