//! A virtual machine that is reached through the REST API of its VMM.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use serde::Deserialize;

use super::vmm::{Assigned, Prospect, Vmm, VmmError, Windows};
use crate::api::{P2pWindows, RemoveDevice};
use crate::{Client, ClientError, DeviceConfig};

/// How often is looked whether a device has gone.
const POLL: Duration = Duration::from_millis(100);

/// How long the VMM may take beyond what the guest may take, to withdraw the request.
const GRACE: Duration = Duration::from_secs(5);

/// Where the kernel shows functions.
const DEVICES: &str = "/sys/bus/pci/devices";

/// A virtual machine behind a socket.
#[derive(Debug, Clone)]
pub struct RemoteVmm {
    name: String,
    client: Client,
}

/// What is looked at in the answer to `vm.info`: VMMs differ in the rest.
#[derive(Deserialize)]
struct Info {
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    devices: Option<Vec<Device>>,
}

#[derive(Deserialize)]
struct Device {
    path: PathBuf,
    id: Option<String>,
    #[serde(default)]
    p2p: bool,
    #[serde(default)]
    p2p_domain: Option<String>,
    #[serde(default)]
    expose: BTreeSet<Sbdf>,
}

impl RemoteVmm {
    /// The virtual machine whose VMM is at the other end of `client`.
    pub fn new(name: impl Into<String>, client: Client) -> Self {
        Self {
            name: name.into(),
            client,
        }
    }

    /// Lets the peers of a device reach it, or no more. A device that the guest does not have has no windows.
    fn set_windows(&self, device: &Assigned, open: bool) -> Result<(), VmmError> {
        let request = P2pWindows {
            id: device.id.clone(),
            open,
        };
        match self.client.put("vm.p2p-windows", &request) {
            Ok(_) => Ok(()),
            Err(error) => match self.has(&device.id) {
                Ok(Some(found)) if found.p2p => Err(self.error(&error)),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    fn has(&self, id: &str) -> Result<Option<Assigned>, VmmError> {
        let devices = self.devices()?;
        Ok(devices.into_iter().find(|device| device.id == id))
    }

    fn gone(&self) -> VmmError {
        VmmError::Gone {
            vm: self.name.clone(),
        }
    }

    fn error(&self, error: &ClientError) -> VmmError {
        if is_gone(error) {
            return self.gone();
        }
        VmmError::Refused {
            vm: self.name.clone(),
            reason: reason(error),
        }
    }
}

/// Whether nobody is there any more, as opposed to somebody who does not answer.
pub(super) fn is_gone(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { source, .. } => matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        ),
        ClientError::Broken { source, .. } => matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        ),
        ClientError::Descriptor { .. }
        | ClientError::Late { .. }
        | ClientError::Malformed { .. }
        | ClientError::Refused { .. }
        | ClientError::Failed { .. } => false,
    }
}

/// An error with its causes, in one line.
pub(super) fn reason(error: &ClientError) -> String {
    let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let chain = std::iter::successors(first, |error| error.source());
    let words: Vec<String> = chain.map(ToString::to_string).collect();
    words.join(": ").replace('\n', "; ")
}

impl Vmm for RemoteVmm {
    fn name(&self) -> &str {
        &self.name
    }

    fn devices(&self) -> Result<Vec<Assigned>, VmmError> {
        const NOT_FOUND: u16 = 404;
        let info: Info = match self.client.get("vm.info") {
            Ok(info) => info,
            // A VMM that has not been told yet what its VM is.
            Err(ClientError::Failed {
                status: NOT_FOUND, ..
            }) => return Ok(Vec::new()),
            Err(error) => return Err(self.error(&error)),
        };
        let assigned = |device: Device| {
            let function: Sbdf = device.path.file_name()?.to_str()?.parse().ok()?;
            Some(Assigned {
                vm: self.name.clone(),
                id: device.id?,
                function,
                p2p: device.p2p,
                domain: device.p2p_domain,
                expose: device.expose,
                slot: None,
            })
        };
        let devices = info.config.devices.unwrap_or_default();
        Ok(devices.into_iter().filter_map(assigned).collect())
    }

    /// It has a context for each domain, and says itself what it takes when it is plugged.
    fn could_have(&self, _: &Prospect<'_>) -> Result<(), VmmError> {
        Ok(())
    }

    fn revoke(&self, device: &Assigned) -> Result<Windows, VmmError> {
        self.set_windows(device, false).map(|()| Windows::Closed)
    }

    fn unplug(&self, device: &Assigned, deadline: Duration) -> Result<(), VmmError> {
        let until = Instant::now() + deadline + GRACE;
        let request = RemoveDevice {
            id: device.id.clone(),
            timeout_ms: Some(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
            force: false,
        };
        let mut asked = false;
        while self.has(&device.id)?.is_some() {
            if !asked {
                match self.client.remove_device(&request) {
                    Ok(()) => asked = true,
                    // Somebody has asked before us, or it is on its way in: later it will be possible.
                    Err(ClientError::Refused { .. }) => {}
                    Err(error) => match self.has(&device.id)? {
                        None => return Ok(()),
                        Some(_) if is_gone(&error) => return Err(self.gone()),
                        Some(_) => return Err(self.error(&error)),
                    },
                }
            }
            if Instant::now() >= until {
                return Err(VmmError::Stalled {
                    vm: self.name.clone(),
                    id: device.id.clone(),
                    deadline,
                });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn plug(&self, device: &Assigned) -> Result<(), VmmError> {
        const PATIENCE: Duration = Duration::from_secs(30);
        match self.has(&device.id)? {
            Some(found) if (found.p2p, &found.domain) == (device.p2p, &device.domain) => {
                // It may be one that was to go and has stayed.
                return self.set_windows(device, true);
            }
            Some(other) => self.unplug(&other, PATIENCE)?,
            None => {}
        }
        let config = DeviceConfig {
            path: Some(PathBuf::from(DEVICES).join(device.function.to_string())),
            fd: None,
            id: Some(device.id.clone()),
            p2p: device.p2p,
            p2p_domain: device.domain.clone(),
            expose: device.expose.clone(),
        };
        let added = self.client.add_device(&config);
        added.map(drop).map_err(|error| self.error(&error))
    }
}
