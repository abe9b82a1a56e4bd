//! The calls of a VMM by their names.

use hyper::StatusCode;
use serde::Serialize;

use super::answer::{Answers, BadRequest, Response, empty, failure, json};
use super::request::Asked;
use super::stream::{EVENTS, Streams};
use crate::call::{Call, Caller, Reply};
use crate::failure::Failure;

/// Who hands calls to the thread of the VM, and tells events.
#[derive(Clone)]
pub(super) struct VmmCalls {
    caller: Caller,
    streams: Streams,
}

impl Answers for VmmCalls {
    async fn answer(&self, asked: Asked) -> Result<Response, BadRequest> {
        match asked.call()? {
            "vmm.ping" => {
                self.tell(&asked, "The VMM does not answer", Call::Ping)
                    .await
            }
            "vmm.shutdown" => {
                asked.put_nothing()?;
                self.shutdown_vmm().await
            }
            "vm.create" => {
                let config = asked.put_json()?;
                let make = |reply| Call::Create(Box::new(config), reply);
                self.done("The VM could not be created", make).await
            }
            "vm.boot" => self.act(&asked, "The VM could not boot", Call::Boot).await,
            "vm.shutdown" => {
                let what = "The VM could not shutdown";
                self.act(&asked, what, Call::Shutdown).await
            }
            "vm.delete" => {
                let what = "The VM could not be deleted";
                self.act(&asked, what, Call::Delete).await
            }
            "vm.reboot" => {
                self.act(&asked, "The VM could not reboot", Call::Reboot)
                    .await
            }
            "vm.pause" => {
                let what = "The VM could not be paused";
                self.act(&asked, what, Call::Pause).await
            }
            "vm.resume" => {
                self.act(&asked, "The VM could not resume", Call::Resume)
                    .await
            }
            "vm.power-button" => {
                let what = "Error triggering power button";
                self.act(&asked, what, Call::PowerButton).await
            }
            "vm.info" => {
                self.tell(&asked, "The VM info is not available", Call::Info)
                    .await
            }
            "vm.counters" => {
                let what = "The VM counters are not available";
                self.tell(&asked, what, Call::Counters).await
            }
            "vm.p2p" => {
                let what = "The P2P domains are not available";
                self.tell(&asked, what, Call::P2p).await
            }
            "vm.p2p-windows" => {
                let request = asked.put_json()?;
                let make = |reply| Call::P2pWindows(request, reply);
                let what = "The windows of the device could not be changed";
                self.done(what, make).await
            }
            "vm.add-device" => self.add_device(asked).await,
            "vm.remove-device" => {
                let request = asked.put_json()?;
                let make = |reply| Call::RemoveDevice(request, reply);
                let what = "The device could not be removed from the VM";
                self.done(what, make).await
            }
            EVENTS => self.streams.answer(asked),
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

    /// Makes a call that has no body, as its answer has none.
    async fn act(
        &self,
        asked: &Asked,
        what: &str,
        make: impl FnOnce(Reply<()>) -> Call,
    ) -> Result<Response, BadRequest> {
        asked.put_nothing()?;
        self.done(what, make).await
    }

    /// Makes a call that changes nothing, whose answer is JSON.
    async fn tell<T: Serialize>(
        &self,
        asked: &Asked,
        what: &str,
        make: impl FnOnce(Reply<T>) -> Call,
    ) -> Result<Response, BadRequest> {
        asked.get()?;
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

    async fn add_device(&self, asked: Asked) -> Result<Response, BadRequest> {
        let what = "The device could not be added to the VM";
        let config = asked.put_json()?;
        let mut riders = asked.riders.take();
        let device = riders.pop();
        if !riders.is_empty() {
            let why = "a device is one descriptor, and more came".to_owned();
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
