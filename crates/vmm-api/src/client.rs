//! Client of a VMM's REST API: a VMM of this project, or cloud-hypervisor.
//!
//! Calls are synchronous and use one connection each. No call takes longer than the client's timeout.

mod connect;
mod error;
mod events;
mod http_exchange;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::DeviceConfig;
use crate::{P2pInfo, PciDevice, RemoveDevice, VmInfo, VmmPing};

pub use connect::connect;
pub use error::ClientError;
pub use events::{EventStream, Next};

pub(crate) use http_exchange::HttpExchange;

/// Default timeout of a call. To add a device with much memory takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of the VMM at one socket.
///
/// ```no_run
/// let client = vmm_api::Client::new("/run/vm.sock");
/// println!("{}", client.ping()?.version);
/// # Ok::<(), vmm_api::ClientError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// Creates a client of the VMM that listens at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            patience: PATIENCE,
        }
    }

    /// Sets the time that a call may take in all.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The socket of the VMM's API.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Build, version and process ID of the VMM.
    ///
    /// # Errors
    /// [`ClientError`], as for all calls.
    pub fn ping(&self) -> Result<VmmPing, ClientError> {
        self.get("vmm.ping")
    }

    /// Configuration, state and devices of the VM.
    pub fn info(&self) -> Result<VmInfo, ClientError> {
        self.get("vm.info")
    }

    /// P2P domains, routes and exposures of the VM.
    pub fn p2p(&self) -> Result<P2pInfo, ClientError> {
        self.get("vm.p2p")
    }

    /// Adds a device. Returns its place in the guest if the VM runs. A device given as an inherited descriptor is sent
    /// with the request.
    pub fn add_device(&self, device: &DeviceConfig) -> Result<Option<PciDevice>, ClientError> {
        let call = "vm.add-device";
        let fds = match device.fd {
            Some(fd) => vec![
                fd.duplicate()
                    .map_err(|source| ClientError::Descriptor { fd, source })?,
            ],
            None => Vec::new(),
        };
        let body =
            serde_json::to_vec(device).map_err(|error| ClientError::malformed(call, error))?;
        let answer = self.call("PUT", call, Some(&body), &fds)?;
        answer.map(|body| parse(call, &body)).transpose()
    }

    /// Asks the guest to release a device. An event reports when the device is gone.
    pub fn remove_device(&self, request: &RemoveDevice) -> Result<(), ClientError> {
        self.put("vm.remove-device", request).map(|_| ())
    }

    /// Makes a call without a body, such as `vm.pause`.
    pub fn act(&self, call: &str) -> Result<(), ClientError> {
        self.call("PUT", call, None, &[]).map(|_| ())
    }

    /// Makes a call that only reads, such as `vm.info`, and returns the answer.
    pub fn get<T: DeserializeOwned>(&self, call: &str) -> Result<T, ClientError> {
        let body = self.call("GET", call, None, &[])?.unwrap_or_default();
        parse(call, &body)
    }

    /// Makes a call with a body, such as `vm.create`. Returns the body of the answer, if there is one.
    pub fn put(&self, call: &str, body: &impl Serialize) -> Result<Option<Vec<u8>>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::malformed(call, error))?;
        self.call("PUT", call, Some(&body), &[])
    }

    /// Opens the stream of events, from now on. cloud-hypervisor has no such call.
    pub fn events(&self) -> Result<EventStream, ClientError> {
        EventStream::open(&self.socket, self.patience)
    }

    fn call(
        &self,
        method: &str,
        call: &str,
        body: Option<&[u8]>,
        fds: &[OwnedFd],
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let mut exchange = HttpExchange::open(&self.socket, call, self.patience)?;
        exchange.send_request(&format!("{method} /api/v1/{call} HTTP/1.1"), body, fds)?;
        exchange.answer()
    }
}

fn parse<T: DeserializeOwned>(call: &str, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::malformed(call, error))
}

#[cfg(all(test, feature = "server"))]
mod tests;
