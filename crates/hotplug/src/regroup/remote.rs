//! A virtual machine of p2p-vmm, through the REST API.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use serde::Deserialize;

use super::vmm::{
    PeerMappings, ProposedDevices, VmAddress, VmDevice, Vmm, VmmError, VmmKind, is_gone,
};
use vmm_api::{Client, ClientError, DeviceConfig, P2pMemory, P2pWindows, RemoveDevice};

/// Interval of checks whether a device is gone.
const POLL: Duration = Duration::from_millis(100);

/// Time that the VMM may take to withdraw a request, beyond the guest's deadline.
const GRACE: Duration = Duration::from_secs(5);

/// Directory of the functions in sysfs.
const DEVICES: &str = "/sys/bus/pci/devices";

/// A virtual machine of p2p-vmm.
#[derive(Debug, Clone)]
pub struct RemoteVmm {
    name: String,
    client: Client,
}

/// The used fields of the answer to `vm.info`. The other fields differ between VMMs.
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

/// The used fields of the answer to `vm.p2p`.
#[derive(Deserialize)]
struct Memory {
    #[serde(default)]
    memory: Vec<P2pMemory>,
}

impl RemoteVmm {
    /// The virtual machine whose VMM `client` calls.
    pub fn new(name: impl Into<String>, client: Client) -> Self {
        Self {
            name: name.into(),
            client,
        }
    }

    /// Opens or closes the mappings through which peers reach a device. A device that the guest does not have has none.
    fn set_windows(&self, device: &VmDevice, open: bool) -> Result<(), VmmError> {
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

    fn has(&self, id: &str) -> Result<Option<VmDevice>, VmmError> {
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

    fn devices_by(&self, client: &Client) -> Result<Vec<VmDevice>, VmmError> {
        const NOT_FOUND: u16 = 404;
        let info: Info = match client.get("vm.info") {
            Ok(info) => info,
            // The VMM has no VM yet.
            Err(ClientError::Failed {
                status: NOT_FOUND, ..
            }) => return Ok(Vec::new()),
            Err(error) => return Err(self.error(&error)),
        };
        let assigned = |device: Device| {
            let function: Sbdf = device.path.file_name()?.to_str()?.parse().ok()?;
            Some(VmDevice {
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

    fn devices(&self) -> Result<Vec<VmDevice>, VmmError> {
        self.devices_by(&self.client)
    }

    fn devices_within(&self, patience: Duration) -> Result<Vec<VmDevice>, VmmError> {
        self.devices_by(&self.client.clone().with_patience(patience))
    }

    /// The VMM has an IOMMU context for each domain and checks devices when they are plugged. The guest's memory cannot
    /// move.
    fn could_have(&self, proposed: &ProposedDevices<'_>) -> Result<(), VmmError> {
        if proposed.holes.values().all(Vec::is_empty) {
            return Ok(());
        }
        let Memory { memory } = match self.client.get("vm.p2p") {
            Ok(answer) => answer,
            Err(error) => return Err(self.error(&error)),
        };
        let range =
            |part: &P2pMemory| Some(part.base..=part.base.checked_add(part.size)?.checked_sub(1)?);
        let memory: Vec<_> = memory.iter().filter_map(range).collect();
        proposed.reach_memory(&self.name, &memory, |_| true)
    }

    fn revoke(&self, device: &VmDevice) -> Result<PeerMappings, VmmError> {
        self.set_windows(device, false)
            .map(|()| PeerMappings::Closed)
    }

    fn reopen(&self, device: &VmDevice) -> Result<(), VmmError> {
        self.set_windows(device, true)
    }

    fn unplug(&self, device: &VmDevice, deadline: Duration) -> Result<(), VmmError> {
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
                    // The device is being removed or added; try again later.
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

    fn plug(&self, device: &VmDevice) -> Result<(), VmmError> {
        const PATIENCE: Duration = Duration::from_secs(30);
        match self.has(&device.id)? {
            Some(found) if (found.p2p, &found.domain) == (device.p2p, &device.domain) => {
                // The device may have stayed after a removal request.
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

    /// Checks a device with this hole against a VM with memory below 1 GiB and from 4 to 5 GiB.
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
        let answer = RemoteVmm::new("web", Client::new(&socket)).could_have(&ProposedDevices {
            devices: &[],
            routes: &[],
            holes: &holes,
        });
        assert!(server.join().unwrap().starts_with("GET /api/v1/vm.p2p "));
        answer
    }

    #[test]
    fn memory_in_a_hole_refuses_the_device() {
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
