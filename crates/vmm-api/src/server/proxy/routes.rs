//! The calls of cloud-hypervisor v51 to v54 that the proxy forwards (its `vmm/src/api/http/mod.rs`).

use std::time::Duration;

use hyper::Method;

use crate::FilteredCall;
use crate::HttpMethod;

/// Timeout for calls that are answered at once, though perhaps behind others.
const SHORT: Duration = Duration::from_secs(60);
/// Timeout for calls that pin or free memory, or access a disk.
const LONG: Duration = Duration::from_secs(600);
/// Timeout for calls that copy the memory of a VM.
const COPY: Duration = Duration::from_secs(24 * 3600);

/// A call that the proxy forwards.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) call: &'static str,
    method: HttpMethod,
    /// The kind of call for the filter; none if the call cannot add or remove devices of the host.
    pub(super) filtered: Option<FilteredCall>,
    pub(super) takes_descriptors: bool,
    /// Timeout for the VMM's answer.
    pub(super) patience: Duration,
}

impl Route {
    const fn new(call: &'static str, method: HttpMethod, patience: Duration) -> Self {
        Self {
            call,
            method,
            filtered: None,
            takes_descriptors: false,
            patience,
        }
    }

    const fn get(call: &'static str) -> Self {
        Self::new(call, HttpMethod::Get, SHORT)
    }

    const fn put(call: &'static str, patience: Duration) -> Self {
        Self::new(call, HttpMethod::Put, patience)
    }

    const fn filtered(self, call: FilteredCall) -> Self {
        Self {
            filtered: Some(call),
            ..self
        }
    }

    const fn with_descriptors(self) -> Self {
        Self {
            takes_descriptors: true,
            ..self
        }
    }

    /// The route of a call; `None` if the call is not forwarded.
    pub(super) fn of(call: &str) -> Option<&'static Self> {
        ROUTES.iter().find(|route| route.call == call)
    }

    pub(super) fn method(&self) -> Method {
        match self.method {
            HttpMethod::Get => Method::GET,
            HttpMethod::Put => Method::PUT,
        }
    }
}

/// All routes. `vm.add-user-device` and the calls for vhost-user add devices of other processes, which get access to guest
/// memory. They add no function of the host.
const ROUTES: &[Route] = &[
    Route::get("vmm.ping"),
    Route::get("vm.info"),
    Route::get("vm.counters"),
    Route::put("vm.create", SHORT).filtered(FilteredCall::Create),
    Route::put("vm.add-device", LONG)
        .filtered(FilteredCall::AddDevice)
        .with_descriptors(),
    Route::put("vm.remove-device", SHORT).filtered(FilteredCall::RemoveDevice),
    Route::put("vm.restore", COPY)
        .filtered(FilteredCall::Restore)
        .with_descriptors(),
    Route::put("vm.receive-migration", COPY).filtered(FilteredCall::ReceiveMigration),
    Route::put("vm.add-net", LONG).with_descriptors(),
    Route::put("vm.add-disk", LONG),
    Route::put("vm.add-fs", LONG),
    Route::put("vm.add-generic-vhost-user", LONG),
    Route::put("vm.add-pmem", LONG),
    Route::put("vm.add-user-device", LONG),
    Route::put("vm.add-vdpa", LONG).filtered(FilteredCall::AddVdpa),
    Route::put("vm.add-vsock", LONG),
    Route::put("vm.boot", LONG).filtered(FilteredCall::Boot),
    Route::put("vm.coredump", COPY),
    Route::put("vm.delete", LONG),
    Route::put("vm.nmi", SHORT),
    Route::put("vm.pause", LONG),
    Route::put("vm.power-button", SHORT),
    Route::put("vm.reboot", LONG).filtered(FilteredCall::Reboot),
    Route::put("vm.resize", LONG),
    Route::put("vm.resize-disk", LONG),
    Route::put("vm.resize-zone", LONG),
    Route::put("vm.resume", SHORT),
    Route::put("vm.send-migration", COPY),
    Route::put("vm.shutdown", LONG),
    Route::put("vm.snapshot", COPY),
    Route::put("vmm.shutdown", LONG),
];
