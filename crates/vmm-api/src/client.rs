//! A client of the REST API of a VMM: this project's, or cloud-hypervisor's.
//!
//! Synchronous, one connection per call, and no call takes longer than the client's patience.

mod connect;
mod conversation;
mod error;
mod events;

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

pub(crate) use conversation::Conversation;

/// How long a call may take, unless said. To add a device with much memory takes seconds.
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
    /// A client of the VMM that listens at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            patience: PATIENCE,
        }
    }

    /// The same with another patience: how long a call may take in all.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where the VMM listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the VMM is there, and which it is.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all calls.
    pub fn ping(&self) -> Result<VmmPing, ClientError> {
        self.get("vmm.ping")
    }

    /// How the VM is.
    pub fn info(&self) -> Result<VmInfo, ClientError> {
        self.get("vm.info")
    }

    /// Who may reach whom.
    pub fn p2p(&self) -> Result<P2pInfo, ClientError> {
        self.get("vm.p2p")
    }

    /// Adds a device; where it is in the guest, if there is a guest. If it is an inherited descriptor, that is sent.
    pub fn add_device(&self, device: &DeviceConfig) -> Result<Option<PciDevice>, ClientError> {
        let call = "vm.add-device";
        let riders = match device.fd {
            Some(fd) => vec![
                fd.duplicate()
                    .map_err(|source| ClientError::Descriptor { fd, source })?,
            ],
            None => Vec::new(),
        };
        let body =
            serde_json::to_vec(device).map_err(|error| ClientError::malformed(call, error))?;
        let answer = self.talk("PUT", call, Some(&body), &riders)?;
        answer.map(|body| parse(call, &body)).transpose()
    }

    /// Asks the guest to let go of a device. An event says when it has.
    pub fn remove_device(&self, request: &RemoveDevice) -> Result<(), ClientError> {
        self.put("vm.remove-device", request).map(|_| ())
    }

    /// Makes a call that has no body, such as `vm.pause`.
    pub fn act(&self, call: &str) -> Result<(), ClientError> {
        self.talk("PUT", call, None, &[]).map(|_| ())
    }

    /// What a call answers, such as `vm.info`.
    pub fn get<T: DeserializeOwned>(&self, call: &str) -> Result<T, ClientError> {
        let body = self.talk("GET", call, None, &[])?.unwrap_or_default();
        parse(call, &body)
    }

    /// Makes a call with a body, such as `vm.create`; what it answers, if anything.
    pub fn put(&self, call: &str, body: &impl Serialize) -> Result<Option<Vec<u8>>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::malformed(call, error))?;
        self.talk("PUT", call, Some(&body), &[])
    }

    /// What happens from now on. A VMM of this project only: cloud-hypervisor has no such call.
    pub fn events(&self) -> Result<EventStream, ClientError> {
        EventStream::open(&self.socket, self.patience)
    }

    fn talk(
        &self,
        verb: &str,
        call: &str,
        body: Option<&[u8]>,
        riders: &[OwnedFd],
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let mut conversation = Conversation::open(&self.socket, call, self.patience)?;
        conversation.ask(&format!("{verb} /api/v1/{call} HTTP/1.1"), body, riders)?;
        conversation.answer()
    }
}

fn parse<T: DeserializeOwned>(call: &str, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::malformed(call, error))
}

#[cfg(all(test, feature = "server"))]
mod tests;
