//! A virtual machine that is reached through the REST API of its VMM.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use serde::Deserialize;

use super::vmm::{Assigned, Prospect, VmAddress, Vmm, VmmError, VmmKind, Windows};
use vmm_api::{Client, ClientError, DeviceConfig, P2pMemory, P2pWindows, RemoveDevice};

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

/// What is looked at in the answer to `vm.p2p`.
#[derive(Deserialize)]
struct Memory {
    #[serde(default)]
    memory: Vec<P2pMemory>,
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
        VmmError::of(&self.name, error)
    }

    fn devices_by(&self, client: &Client) -> Result<Vec<Assigned>, VmmError> {
        const NOT_FOUND: u16 = 404;
        let info: Info = match client.get("vm.info") {
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
    in_one_line(&words.join(": "))
}

/// A reason with its advice, whose lines are indented on a terminal.
pub(super) fn in_one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join("; ")
}

impl Vmm for RemoteVmm {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self) -> Option<VmAddress> {
        Some(VmAddress {
            socket: self.client.socket().to_owned(),
            kind: VmmKind::P2pVmm,
        })
    }

    fn devices(&self) -> Result<Vec<Assigned>, VmmError> {
        self.devices_by(&self.client)
    }

    fn devices_within(&self, patience: Duration) -> Result<Vec<Assigned>, VmmError> {
        self.devices_by(&self.client.clone().with_patience(patience))
    }

    /// It has a context for each domain, and says itself what it takes when it is plugged. Its memory stays where it is.
    fn could_have(&self, prospect: &Prospect<'_>) -> Result<(), VmmError> {
        if prospect.holes.values().all(Vec::is_empty) {
            return Ok(());
        }
        let Memory { memory } = match self.client.get("vm.p2p") {
            Ok(answer) => answer,
            Err(error) => return Err(self.error(&error)),
        };
        let range =
            |part: &P2pMemory| Some(part.base..=part.base.checked_add(part.size)?.checked_sub(1)?);
        let memory: Vec<_> = memory.iter().filter_map(range).collect();
        prospect.reach_memory(&self.name, &memory, |_| true)
    }

    fn revoke(&self, device: &Assigned) -> Result<Windows, VmmError> {
        self.set_windows(device, false).map(|()| Windows::Closed)
    }

    fn reopen(&self, device: &Assigned) -> Result<(), VmmError> {
        self.set_windows(device, true)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use iommu_group::{HoleCause, MemoryHole};

    use super::*;

    /// Whether a VM with memory up to 1 GiB and from 4 to 5 GiB could have a device with this hole.
    fn could_have(hole: &MemoryHole) -> Result<(), VmmError> {
        const ANSWER: &str =
            r#"{"memory":[{"base":0,"size":1073741824},{"base":4294967296,"size":1073741824}]}"#;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let length_bytes = ANSWER.len();
            write!(
                stream,
                "HTTP/1.1 200 \r\nContent-Length: {length_bytes}\r\n\r\n{ANSWER}"
            )
            .unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let holes = BTreeMap::from([("0000:03:00.0".parse().unwrap(), vec![hole.clone()])]);
        let answer = RemoteVmm::new("web", Client::new(&socket)).could_have(&Prospect {
            devices: &[],
            routes: &[],
            holes: &holes,
        });
        assert!(server.join().unwrap().starts_with("GET /api/v1/vm.p2p "));
        answer
    }

    #[test]
    fn a_vm_whose_memory_is_in_a_hole_could_not_have_the_device() {
        let hole = |range| MemoryHole {
            range,
            port: "0000:01:00.0".parse().unwrap(),
            cause: HoleCause::Switch,
            certain: false,
        };
        assert_eq!(could_have(&hole(0x4000_0000..=0xffff_ffff)), Ok(()));
        let inside = hole(0x1_3fff_ffff..=0x1_4000_0000);
        let memory = 0x1_0000_0000..=0x1_3fff_ffff;
        let error = VmmError::Memory {
            vm: "web".to_owned(),
            function: "0000:03:00.0".parse().unwrap(),
            memory,
            hole: inside.clone(),
        };
        assert_eq!(could_have(&inside), Err(error));
    }
}
