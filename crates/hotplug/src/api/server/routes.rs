//! The calls by their paths.

use axum::Router;
use axum::extract::{Extension, FromRef, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get, put};
use hyper::StatusCode;
use serde::Serialize;

use super::answer::{BadRequest, empty, failure, json};
use super::request::{Json, NoBody};
use super::riders::Riders;
use super::stream::{self, Streams};
use crate::api::call::{Call, Caller, Reply};
use crate::api::failure::Failure;
use crate::api::types::{P2pWindows, RemoveDevice};
use crate::{DeviceConfig, VmConfig};

/// What all requests share.
#[derive(Clone)]
pub(super) struct Shared {
    caller: Caller,
    streams: Streams,
}

impl FromRef<Shared> for Streams {
    fn from_ref(shared: &Shared) -> Self {
        shared.streams.clone()
    }
}

impl Shared {
    pub(super) fn new(caller: Caller, streams: Streams) -> Self {
        Self { caller, streams }
    }

    /// Makes a call whose answer has no body.
    async fn done(&self, what: &str, make: impl FnOnce(Reply<()>) -> Call) -> Response {
        match self.caller.call(make).await {
            Ok(()) => empty(StatusCode::NO_CONTENT),
            Err(error) => failure(what, &error),
        }
    }

    /// Makes a call whose answer is JSON.
    async fn answer<T: Serialize>(
        &self,
        what: &str,
        make: impl FnOnce(Reply<T>) -> Call,
    ) -> Response {
        match self.caller.call(make).await {
            Ok(value) => json(StatusCode::OK, &value),
            Err(error) => failure(what, &error),
        }
    }
}

/// All calls. A verb that a call does not have is a bad request, as cloud-hypervisor sees it.
pub(super) fn router(shared: Shared) -> Router {
    let calls: [(&str, MethodRouter<Shared>); 17] = [
        ("vmm.ping", get(ping)),
        ("vmm.shutdown", put(shutdown_vmm)),
        ("vm.create", put(create)),
        ("vm.boot", put(boot)),
        ("vm.shutdown", put(shutdown)),
        ("vm.delete", put(delete)),
        ("vm.reboot", put(reboot)),
        ("vm.pause", put(pause)),
        ("vm.resume", put(resume)),
        ("vm.power-button", put(power_button)),
        ("vm.info", get(info)),
        ("vm.counters", get(counters)),
        ("vm.p2p", get(p2p)),
        ("vm.p2p-windows", put(p2p_windows)),
        ("vm.add-device", put(add_device)),
        ("vm.remove-device", put(remove_device)),
        ("events", get(stream::events)),
    ];
    let mut router = Router::new();
    for (name, method) in calls {
        let method = method.fallback(async || BadRequest::Form);
        router = router.route(&format!("/api/v1/{name}"), method);
    }
    router
        .fallback(async || BadRequest::NoSuchCall)
        .with_state(shared)
}

async fn ping(State(shared): State<Shared>) -> Response {
    shared.answer("The VMM does not answer", Call::Ping).await
}

async fn shutdown_vmm(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    match shared.caller.call(Call::ShutdownVmm).await {
        Ok(()) => empty(StatusCode::OK),
        Err(error) => failure("The VMM could not shutdown", &error),
    }
}

async fn create(State(shared): State<Shared>, Json(config): Json<VmConfig>) -> Response {
    let make = |reply| Call::Create(Box::new(config), reply);
    shared.done("The VM could not be created", make).await
}

async fn boot(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    shared.done("The VM could not boot", Call::Boot).await
}

async fn shutdown(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    let what = "The VM could not shutdown";
    shared.done(what, Call::Shutdown).await
}

async fn delete(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    let what = "The VM could not be deleted";
    shared.done(what, Call::Delete).await
}

async fn reboot(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    shared.done("The VM could not reboot", Call::Reboot).await
}

async fn pause(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    let what = "The VM could not be paused";
    shared.done(what, Call::Pause).await
}

async fn resume(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    shared.done("The VM could not resume", Call::Resume).await
}

async fn power_button(State(shared): State<Shared>, NoBody: NoBody) -> Response {
    let what = "Error triggering power button";
    shared.done(what, Call::PowerButton).await
}

async fn info(State(shared): State<Shared>) -> Response {
    let what = "The VM info is not available";
    shared.answer(what, Call::Info).await
}

async fn counters(State(shared): State<Shared>) -> Response {
    let what = "The VM counters are not available";
    shared.answer(what, Call::Counters).await
}

async fn p2p(State(shared): State<Shared>) -> Response {
    let what = "The P2P domains are not available";
    shared.answer(what, Call::P2p).await
}

async fn p2p_windows(State(shared): State<Shared>, Json(request): Json<P2pWindows>) -> Response {
    let what = "The windows of the device could not be changed";
    let make = |reply| Call::P2pWindows(request, reply);
    shared.done(what, make).await
}

async fn add_device(
    State(shared): State<Shared>,
    Extension(riders): Extension<Riders>,
    Json(config): Json<DeviceConfig>,
) -> Response {
    let what = "The device could not be added to the VM";
    let mut riders = riders.take();
    let device = riders.pop();
    let make = |reply| Call::AddDevice(config, device, reply);
    if !riders.is_empty() {
        let why = "a device is one descriptor, and more came".to_owned();
        return failure(what, &Failure::Malformed(why));
    }
    match shared.caller.call(make).await {
        Ok(Some(device)) => json(StatusCode::OK, &device),
        Ok(None) => empty(StatusCode::NO_CONTENT),
        Err(error) => failure(what, &error),
    }
}

async fn remove_device(
    State(shared): State<Shared>,
    Json(request): Json<RemoveDevice>,
) -> Response {
    let what = "The device could not be removed from the VM";
    let make = |reply| Call::RemoveDevice(request, reply);
    shared.done(what, make).await
}
