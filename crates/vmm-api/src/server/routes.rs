//! The calls of a VMM by name.

use hyper::StatusCode;
use serde::Serialize;

use super::answer::{Service, empty, failure, json};
use super::request::{BadRequest, HttpRequest};
use super::stream::{EVENTS, Response, Streams};
use crate::call::{Call, Caller, Reply};
use crate::failure::Failure;

/// Passes calls to the thread that owns the VM, and serves the stream of events.
#[derive(Clone)]
pub(super) struct VmmCalls {
    caller: Caller,
    streams: Streams,
}

impl Service for VmmCalls {
    async fn answer(&self, request: HttpRequest) -> Result<Response, BadRequest> {
        match request.call()? {
            "vmm.ping" => {
                self.query(&request, "The VMM does not answer", Call::Ping)
                    .await
            }
            "vmm.shutdown" => {
                request.put_nothing()?;
                self.shutdown_vmm().await
            }
            "vm.create" => {
                let config = request.put_json()?;
                let make = |reply| Call::Create(Box::new(config), reply);
                self.done("The VM could not be created", make).await
            }
            "vm.boot" => {
                self.act(&request, "The VM could not boot", Call::Boot)
                    .await
            }
            "vm.shutdown" => {
                let what = "The VM could not shutdown";
                self.act(&request, what, Call::Shutdown).await
            }
            "vm.delete" => {
                let what = "The VM could not be deleted";
                self.act(&request, what, Call::Delete).await
            }
            "vm.reboot" => {
                self.act(&request, "The VM could not reboot", Call::Reboot)
                    .await
            }
            "vm.pause" => {
                let what = "The VM could not be paused";
                self.act(&request, what, Call::Pause).await
            }
            "vm.resume" => {
                self.act(&request, "The VM could not resume", Call::Resume)
                    .await
            }
            "vm.power-button" => {
                let what = "Error triggering power button";
                self.act(&request, what, Call::PowerButton).await
            }
            "vm.info" => {
                self.query(&request, "The VM info is not available", Call::Info)
                    .await
            }
            "vm.counters" => {
                let what = "The VM counters are not available";
                self.query(&request, what, Call::Counters).await
            }
            "vm.p2p" => {
                let what = "The P2P domains are not available";
                self.query(&request, what, Call::P2p).await
            }
            "vm.p2p-windows" => {
                let request = request.put_json()?;
                let make = |reply| Call::P2pWindows(request, reply);
                let what = "The peer mappings of the device could not be changed";
                self.done(what, make).await
            }
            "vm.add-device" => self.add_device(request).await,
            "vm.remove-device" => {
                let request = request.put_json()?;
                let make = |reply| Call::RemoveDevice(request, reply);
                let what = "The device could not be removed from the VM";
                self.done(what, make).await
            }
            EVENTS => self.streams.answer(request),
            _ => Err(BadRequest::NoSuchCall),
        }
    }
}

impl VmmCalls {
    pub(super) fn new(caller: Caller, streams: Streams) -> Self {
        Self { caller, streams }
    }

    /// Makes a call whose answer has no body.
    async fn done(
        &self,
        what: &str,
        make: impl FnOnce(Reply<()>) -> Call,
    ) -> Result<Response, BadRequest> {
        Ok(match self.caller.call(make).await {
            Ok(()) => empty(StatusCode::NO_CONTENT),
            Err(error) => failure(what, &error),
        })
    }

    /// Makes a call without a body whose answer has no body.
    async fn act(
        &self,
        request: &HttpRequest,
        what: &str,
        make: impl FnOnce(Reply<()>) -> Call,
    ) -> Result<Response, BadRequest> {
        request.put_nothing()?;
        self.done(what, make).await
    }

    /// Makes a call that changes nothing and whose answer is JSON.
    async fn query<T: Serialize>(
        &self,
        request: &HttpRequest,
        what: &str,
        make: impl FnOnce(Reply<T>) -> Call,
    ) -> Result<Response, BadRequest> {
        request.get()?;
        Ok(match self.caller.call(make).await {
            Ok(value) => json(StatusCode::OK, &value),
            Err(error) => failure(what, &error),
        })
    }

    async fn shutdown_vmm(&self) -> Result<Response, BadRequest> {
        Ok(match self.caller.call(Call::ShutdownVmm).await {
            Ok(()) => empty(StatusCode::OK),
            Err(error) => failure("The VMM could not shutdown", &error),
        })
    }

    async fn add_device(&self, request: HttpRequest) -> Result<Response, BadRequest> {
        let what = "The device could not be added to the VM";
        let config = request.put_json()?;
        let mut fds = request.fds.take();
        let device = fds.pop();
        if !fds.is_empty() {
            let why = "the request came with more than one descriptor".to_owned();
            return Ok(failure(what, &Failure::Malformed(why)));
        }
        let make = |reply| Call::AddDevice(config, device, reply);
        Ok(match self.caller.call(make).await {
            Ok(Some(device)) => json(StatusCode::OK, &device),
            Ok(None) => empty(StatusCode::NO_CONTENT),
            Err(error) => failure(what, &error),
        })
    }
}
