//! The virtual machines that the daemon knows, and the connection to each.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hotplug::regroup::{
    CloudHypervisorVmm, PeerMappings, ProposedDevices, RemoteVmm, VmAddress, VmDevice, Vmm,
    VmmError, VmmKind,
};
use iommu_group::policy::Policy;
use vmm_api::Client;

use crate::cloud_hypervisor::CloudHypervisorFilter;
use crate::registry;

/// Timeout for a VMM's answer to a ping.
const PATIENCE: Duration = Duration::from_secs(5);

/// `NAME=SOCKET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedSocket {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
}

impl FromStr for NamedSocket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, socket)) if !name.is_empty() && !socket.is_empty() => Ok(Self {
                name: name.to_owned(),
                socket: socket.into(),
            }),
            _ => Err("expected NAME=SOCKET, such as web=/run/vm/web.sock".to_owned()),
        }
    }
}

/// A virtual machine that the daemon can control.
pub(crate) type Guest = Arc<dyn Vmm + Send + Sync>;

/// Where to find virtual machines.
#[derive(Debug, Clone, Default)]
pub(crate) struct VmSockets {
    pub(crate) named: Vec<NamedSocket>,
    /// Directories with a socket, or a link to one, per VM: `NAME.sock`.
    pub(crate) dirs: Vec<PathBuf>,
}

/// Inputs of the checks for cloud-hypervisor devices.
#[derive(Debug, Clone)]
pub(crate) struct CheckInputs {
    pub(crate) sysfs: PathBuf,
    pub(crate) policy: Policy,
}

/// The virtual machines. Clones share their state.
#[derive(Clone)]
pub(crate) struct Guests {
    sockets: VmSockets,
    check: CheckInputs,
    /// The cloud-hypervisor VMs by socket, with the process ID that answered there. The handles record state that the
    /// VMM does not report.
    cloud_hypervisors: Arc<Mutex<BTreeMap<PathBuf, (i64, CloudHypervisorVmm)>>>,
}

impl VmSockets {
    /// The current sockets. An explicit name takes precedence over a directory entry.
    pub(crate) fn sockets(&self) -> Vec<NamedSocket> {
        let mut all = self.named.clone();
        for dir in &self.dirs {
            let entries = fs::read_dir(dir).into_iter().flatten();
            let mut found: Vec<NamedSocket> = entries
                .filter_map(|entry| socket_at(&entry.ok()?.path()))
                .collect();
            found.sort_by(|a, b| a.name.cmp(&b.name));
            found.retain(|guest| {
                let known = |other: &NamedSocket| {
                    let same = fs::canonicalize(&other.socket).ok();
                    other.name == guest.name || same.as_ref() == Some(&guest.socket)
                };
                !all.iter().any(known)
            });
            all.extend(found);
        }
        all
    }
}

/// The VM of a socket in a directory, or of a link to a socket.
fn socket_at(path: &Path) -> Option<NamedSocket> {
    let is_socket = fs::metadata(path).ok()?.file_type().is_socket();
    let name = path.file_stem()?.to_str()?.to_owned();
    let socket = fs::canonicalize(path).ok()?;
    is_socket.then_some(NamedSocket { name, socket })
}

impl Guests {
    pub(crate) fn new(sockets: VmSockets, check: CheckInputs) -> Self {
        Self {
            sockets,
            check,
            cloud_hypervisors: Arc::default(),
        }
    }

    /// The policy for devices.
    pub(crate) fn policy(&self) -> &Policy {
        &self.check.policy
    }

    /// The current sockets.
    pub(crate) fn sockets(&self) -> Vec<NamedSocket> {
        self.sockets.sockets()
    }

    /// The current virtual machines, including those that ended and left their sockets. Does not connect to them.
    pub(crate) fn now(&self) -> Vec<Guest> {
        let sockets = self.sockets();
        let listed = |at: &PathBuf| sockets.iter().any(|guest| guest.socket == *at);
        self.lock().retain(|socket, _| listed(socket));
        sockets.iter().map(|at| self.guest(at)).collect()
    }

    /// The current virtual machines, and those that only the record of an interrupted change names.
    pub(crate) fn with_recorded(&self, recorded: &BTreeMap<String, VmAddress>) -> Vec<Guest> {
        let mut guests = self.now();
        for (name, address) in recorded {
            if !guests.iter().any(|guest| guest.name() == name) {
                let at = NamedSocket {
                    name: name.clone(),
                    socket: address.socket.clone(),
                };
                guests.push(self.recorded(&at, address.kind));
            }
        }
        guests
    }

    /// Connects by the kind of VMM that answers; if none answers, by the kind in the record.
    fn recorded(&self, at: &NamedSocket, kind: VmmKind) -> Guest {
        let client = Client::new(&at.socket).with_patience(PATIENCE);
        let known = self.lock().contains_key(&at.socket);
        if kind == VmmKind::CloudHypervisor && !known && client.ping().is_err() {
            return Arc::new(self.cloud_hypervisor(at, 0));
        }
        self.guest(at)
    }

    /// The virtual machine at a socket. `patience` is the timeout of each call to the VMM. Fails if the VMM does not
    /// answer.
    pub(crate) fn reach(&self, at: &NamedSocket, patience: Duration) -> Result<Guest, VmmError> {
        let client = Client::new(&at.socket).with_patience(patience);
        let ping = client.ping();
        let ping = ping.map_err(|error| VmmError::of(&at.name, &error))?;
        if ping.features.iter().any(|feature| feature == "p2p") {
            return Ok(Arc::new(RemoteVmm::new(&at.name, client)));
        }
        let vmm = self.cloud_hypervisor(at, ping.pid);
        Ok(Arc::new(vmm.with_patience(patience)))
    }

    fn guest(&self, at: &NamedSocket) -> Guest {
        Arc::new(AtSocket {
            client: Client::new(&at.socket),
            at: at.clone(),
            guests: self.clone(),
        })
    }

    /// The cloud-hypervisor with this process ID at a socket.
    fn cloud_hypervisor(&self, at: &NamedSocket, pid: i64) -> CloudHypervisorVmm {
        let client = Client::new(&at.socket);
        let CheckInputs { sysfs, policy } = self.check.clone();
        let filter = CloudHypervisorFilter::new(sysfs, policy, client.clone()).for_regrouping();
        let new = CloudHypervisorVmm::new(&at.name, client, Box::new(filter), registry::EVENTS);
        let mut cloud_hypervisors = self.lock();
        match cloud_hypervisors.get(&at.socket) {
            Some((known, vmm)) if *known == pid => vmm.clone(),
            _ => {
                cloud_hypervisors.insert(at.socket.clone(), (pid, new.clone()));
                new
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, (i64, CloudHypervisorVmm)>> {
        self.cloud_hypervisors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The virtual machine at a socket. The kind of VMM is determined by the first call.
struct AtSocket {
    at: NamedSocket,
    client: Client,
    guests: Guests,
}

impl AtSocket {
    /// Determines the VMM. `patience` is the timeout of the ping.
    fn vmm(&self, patience: Duration) -> Result<Guest, VmmError> {
        // No lock is held across the call.
        match self.client.clone().with_patience(patience).ping() {
            Ok(ping) if ping.features.iter().any(|feature| feature == "p2p") => {
                self.guests.lock().remove(&self.at.socket);
                Ok(Arc::new(RemoteVmm::new(&self.at.name, self.client.clone())))
            }
            Ok(ping) => Ok(Arc::new(self.guests.cloud_hypervisor(&self.at, ping.pid))),
            Err(error) => match self.guests.lock().get(&self.at.socket) {
                // The VMM does not answer, so its kind is assumed unchanged.
                Some((_, vmm)) => Ok(Arc::new(vmm.clone())),
                None => Err(VmmError::of(&self.at.name, &error)),
            },
        }
    }
}

impl Vmm for AtSocket {
    fn name(&self) -> &str {
        &self.at.name
    }

    fn address(&self) -> Option<VmAddress> {
        let is_known = self.guests.lock().contains_key(&self.at.socket);
        Some(VmAddress {
            socket: self.at.socket.clone(),
            kind: match is_known {
                true => VmmKind::CloudHypervisor,
                false => VmmKind::P2pVmm,
            },
        })
    }

    fn devices(&self) -> Result<Vec<VmDevice>, VmmError> {
        self.vmm(PATIENCE)?.devices()
    }

    fn devices_within(&self, patience: Duration) -> Result<Vec<VmDevice>, VmmError> {
        let started = Instant::now();
        let vmm = self.vmm(patience)?;
        vmm.devices_within(patience.saturating_sub(started.elapsed()))
    }

    fn could_have(&self, proposed: &ProposedDevices<'_>) -> Result<(), VmmError> {
        self.vmm(PATIENCE)?.could_have(proposed)
    }

    fn revoke(&self, device: &VmDevice) -> Result<PeerMappings, VmmError> {
        self.vmm(PATIENCE)?.revoke(device)
    }

    fn reopen(&self, device: &VmDevice) -> Result<(), VmmError> {
        self.vmm(PATIENCE)?.reopen(device)
    }

    fn unplug(&self, device: &VmDevice, deadline: Duration) -> Result<(), VmmError> {
        self.vmm(PATIENCE)?.unplug(device, deadline)
    }

    fn expect(&self, devices: &[VmDevice]) {
        if !devices.is_empty()
            && let Ok(vmm) = self.vmm(PATIENCE)
        {
            vmm.expect(devices);
        }
    }

    fn plug(&self, device: &VmDevice) -> Result<(), VmmError> {
        self.vmm(PATIENCE)?.plug(device)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;

    use super::*;

    fn named(text: &str) -> NamedSocket {
        text.parse().unwrap()
    }

    #[test]
    fn sockets_of_a_directory_come_behind_those_that_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let _sockets = ["b.sock", "a.sock"]
            .map(|name| std::os::unix::net::UnixListener::bind(at(name)).unwrap());
        fs::write(at("notes.txt"), "").unwrap();
        let registered = tempfile::tempdir().unwrap();
        for (name, target) in [
            ("c.sock", at("a.sock")),
            ("d.sock", dir.path().join("elsewhere/e")),
            ("gone.sock", at("gone")),
        ] {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            symlink(target, registered.path().join(name)).unwrap();
        }
        let _linked = std::os::unix::net::UnixListener::bind(at("elsewhere/e")).unwrap();
        let sockets = VmSockets {
            named: vec![named("b=/elsewhere")],
            dirs: vec![dir.path().to_owned(), registered.path().to_owned()],
        };
        let found = sockets.sockets();
        let names: Vec<_> = found.iter().map(|guest| guest.name.as_str()).collect();
        assert_eq!(names, ["b", "a", "d"], "each socket once");
        assert_eq!(found[0].socket, PathBuf::from("/elsewhere"));
        assert_eq!(found[1].socket, at("a.sock"));
        assert_eq!(found[2].socket, at("elsewhere/e"));
    }

    #[test]
    fn what_is_known_of_a_vm_goes_with_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = VmSockets {
            named: Vec::new(),
            dirs: vec![dir.path().to_owned()],
        };
        let check = CheckInputs {
            sysfs: "/sys".into(),
            policy: Policy::default(),
        };
        let guests = Guests::new(sockets, check);
        for vm in 0..3 {
            let socket = dir.path().join(format!("{vm}.sock"));
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let answering = std::thread::spawn(move || answer_pings(&listener, 2));
            let guest = guests.now().remove(0);
            for _ in 0..2 {
                assert_eq!(guest.devices().unwrap(), []);
            }
            answering.join().unwrap();
            assert_eq!(guests.lock().len(), 1, "of those before nothing is kept");
            fs::remove_file(socket).unwrap();
        }
        assert!(guests.now().is_empty() && guests.lock().is_empty());
    }

    /// Answers pings like a cloud-hypervisor without a VM, each with one call after it.
    fn answer_pings(listener: &std::os::unix::net::UnixListener, count: usize) {
        for number in 0..count * 2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let (status, body) = match number % 2 {
                0 => (
                    200,
                    r#"{"build_version":"v53.0","version":"53.0","pid":7,"features":[]}"#,
                ),
                _ => (404, "[]"),
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} \r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_socket_without_a_name_is_refused() {
        for text in ["", "a", "a=", "=b"] {
            assert!(text.parse::<NamedSocket>().is_err(), "{text}");
        }
    }
}
