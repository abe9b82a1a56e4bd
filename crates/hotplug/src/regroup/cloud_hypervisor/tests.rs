//! Tests of behaviour that a real cloud-hypervisor does not show on demand: guests that do not release devices, and
//! versions.

use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_group::{HoleCause, Route, RouteChange};
use serde_json::Map;
use tempfile::TempDir;

use super::*;
use crate::regroup::conformance::{Results, dead, unwilling, willing};

/// Behaviour of the VMM and its guest.
#[derive(Debug, Clone, Copy)]
struct Ways {
    version: &'static str,
    /// Number of removal requests until the guest releases a device; never if absent.
    patience: Option<usize>,
    /// Status of the answer to a second removal request.
    again: u16,
}

/// v54: a second request reminds the guest.
const WILLING: Ways = Ways {
    version: "v54.0.0",
    patience: Some(1),
    again: 204,
};

/// State of the VMM.
#[derive(Default)]
struct State {
    platform: Value,
    devices: Vec<Value>,
    /// Devices in the guest: slot and number of removal requests.
    tree: BTreeMap<String, (u8, usize)>,
    added: Vec<Value>,
}

/// A fake cloud-hypervisor. It ends when this is dropped.
struct Fake {
    dir: TempDir,
    state: Arc<Mutex<State>>,
    removals: Arc<AtomicUsize>,
}

impl Fake {
    fn start(ways: Ways, platform: Value, devices: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("api")).unwrap();
        let mut state = State {
            platform,
            ..State::default()
        };
        for (id, function) in devices {
            let path = format!("/sys/bus/pci/devices/{function}");
            state.add(ways, json!({"id": id, "path": path}));
        }
        let fake = Self {
            dir,
            state: Arc::new(Mutex::new(state)),
            removals: Arc::default(),
        };
        let (state, removals) = (Arc::clone(&fake.state), Arc::clone(&fake.removals));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (call, body) = request(&mut stream);
                let mut state = state.lock().unwrap();
                if call == "vm.remove-device" {
                    removals.fetch_add(1, Ordering::SeqCst);
                }
                let (status, answer) = state.answer(ways, &call, body);
                let answer = answer.map(|answer| answer.to_string()).unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n",
                    answer.len()
                );
                // The client may have gone.
                drop(stream.write_all((head + &answer).as_bytes()));
            }
        });
        fake
    }

    fn vmm(&self) -> CloudHypervisorVmm {
        self.vmm_with(Open)
    }

    fn vmm_with(&self, filter: impl RequestFilter + 'static) -> CloudHypervisorVmm {
        let client = Client::new(self.dir.path().join("api"));
        CloudHypervisorVmm::new("web", client, Box::new(filter), self.dir.path())
    }

    fn removals(&self) -> usize {
        self.removals.load(Ordering::SeqCst)
    }
}

impl State {
    fn add(&mut self, ways: Ways, mut device: Value) -> String {
        let number = u8::try_from(self.tree.len()).unwrap() + 3;
        let wanted = device.get("pci_device_id").and_then(Value::as_u64);
        let knows = ways.version != "v51.0";
        let number = wanted
            .filter(|_| knows)
            .map_or(number, |number| number.try_into().unwrap());
        if let Some(fields) = device.as_object_mut() {
            fields.retain(|key, _| !key.starts_with("p2p") && (knows || key != "pci_device_id"));
            fields.insert("iommu".to_owned(), json!(false));
        }
        let id = device["id"].as_str().unwrap().to_owned();
        self.devices.push(device);
        self.tree.insert(id, (number, 0));
        format!("0000:00:{number:02x}.0")
    }

    fn answer(&mut self, ways: Ways, call: &str, body: Value) -> (u16, Option<Value>) {
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        match call {
            "vmm.ping" => {
                let ping = json!({"build_version": ways.version, "version": "1", "pid": 1, "features": ["kvm"]});
                (200, Some(ping))
            }
            "vm.info" => {
                let node = |(id, (number, _)): (&String, &(u8, usize))| {
                    let bdf = format!("0000:00:{number:02x}.0");
                    (
                        id.clone(),
                        json!({"id": id, "resources": [], "children": [], "pci_bdf": bdf}),
                    )
                };
                let tree: Map<String, Value> = self.tree.iter().map(node).collect();
                let config = json!({"platform": self.platform, "devices": self.devices});
                (
                    200,
                    Some(json!({"config": config, "state": "Running", "device_tree": tree})),
                )
            }
            "vm.add-device" => {
                self.added.push(body.clone());
                let bdf = self.add(ways, body);
                (200, Some(json!({"id": id, "bdf": bdf})))
            }
            "vm.remove-device" => {
                let Some((_, asked)) = self.tree.get_mut(&id) else {
                    return (404, Some(json!(["Error from API", "no such device"])));
                };
                *asked += 1;
                let (asked, first) = (*asked, *asked == 1);
                self.devices.retain(|device| device["id"] != id.as_str());
                if ways.patience == Some(asked) {
                    self.tree.remove(&id);
                }
                let again = (ways.again, Some(json!(["Error from API", "asked before"])));
                if first || ways.again == 204 {
                    (204, None)
                } else {
                    again
                }
            }
            _ => (404, None),
        }
    }
}

/// The call of a request and its body.
fn request(stream: &mut UnixStream) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap_or_default();
        bytes.extend_from_slice(some.get(..count).unwrap());
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert_ne!(count, 0, "the request ends in its head");
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            let call = head.split(' ').nth(1).unwrap().rsplit('/').next().unwrap();
            return (
                call.to_owned(),
                serde_json::from_str(body).unwrap_or_default(),
            );
        }
    }
}

/// Forwards every call.
struct Open;

impl RequestFilter for Open {
    fn decide(&self, _: FilteredCall, body: &[u8], _: &[OwnedFd]) -> Decision {
        Decision::Forward(body.to_vec())
    }

    fn memory(&self, _: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        Some(vec![0..=0x1fff_ffff])
    }
}

/// Adds devices that are not peers with unmapped BARs, and refuses peers.
struct Strict;

impl RequestFilter for Strict {
    fn decide(&self, call: FilteredCall, body: &[u8], _: &[OwnedFd]) -> Decision {
        assert_eq!(call, FilteredCall::AddDevice);
        let mut device: Value = serde_json::from_slice(body).unwrap();
        if device["p2p"] == true {
            let reasons = vec![
                "one\n       of several lines".to_owned(),
                "another".to_owned(),
            ];
            return Decision::Refused { reasons };
        }
        device["x_exclude_mmap_bars"] = json!([0, 1, 2, 3, 4, 5]);
        Decision::Forward(device.to_string().into_bytes())
    }

    fn memory(&self, _: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        None
    }
}

const SOON: Duration = Duration::from_millis(300);
const A: (&str, &str) = ("a", "0000:03:00.0");
const B: (&str, &str) = ("b", "0000:04:00.0");

fn device(vmm: &CloudHypervisorVmm, id: &str) -> VmDevice {
    let devices = vmm.devices().unwrap();
    devices.into_iter().find(|device| device.id == id).unwrap()
}

#[track_caller]
fn assert_kept(results: Results) {
    let broken = results.iter().filter(|(_, result)| result.is_err());
    assert_eq!(
        broken.collect::<Vec<_>>(),
        [] as [&(&str, Result<(), String>); 0]
    );
}

#[test]
fn every_version_passes_the_conformance_suite() {
    for (version, again) in [("v51.0", 204), ("v53.0", 500), ("v54.0.0", 204)] {
        let ways = Ways {
            version,
            patience: Some(1),
            again,
        };
        let fake = Fake::start(ways, Value::Null, &[A]);
        let vmm = fake.vmm();
        assert_kept(willing(&vmm, &device(&vmm, "a")));
    }
}

#[test]
fn a_device_comes_back_to_its_slot_with_its_configuration() {
    let fake = Fake::start(WILLING, Value::Null, &[A, B]);
    let vmm = fake.vmm();
    let second = device(&vmm, "b");
    assert_eq!(
        second.slot.as_deref(),
        Some(r#"{"iommu":false,"pci_device_id":4}"#)
    );
    for device in vmm.devices().unwrap() {
        vmm.unplug(&device, SOON).unwrap();
    }
    vmm.plug(&second).unwrap();
    let path = format!("/sys/bus/pci/devices/{}", B.1);
    let asked = json!({"id": "b", "path": path, "p2p": true, "iommu": false, "pci_device_id": 4});
    assert_eq!(fake.state.lock().unwrap().added, [asked]);
}

#[test]
fn a_guest_that_does_not_release_its_device_keeps_it_and_is_reminded() {
    for again in [204, 500] {
        let ways = Ways {
            patience: None,
            again,
            ..WILLING
        };
        let fake = Fake::start(ways, Value::Null, &[A]);
        let vmm = fake.vmm();
        assert_kept(unwilling(&vmm, &device(&vmm, "a")));

        let fake = Fake::start(ways, Value::Null, &[A]);
        let vmm = fake.vmm();
        let was = device(&vmm, "a");
        for asked in 1..=2 {
            let error = vmm.unplug(&was, SOON).unwrap_err();
            assert!(matches!(error, VmmError::Stalled { .. }), "{error}");
            assert_eq!(fake.removals(), asked);
            assert_eq!(
                vmm.devices().unwrap(),
                vec![was.clone()],
                "it is still there"
            );
        }
        vmm.plug(&was).unwrap();
        assert_eq!(fake.state.lock().unwrap().added, [] as [Value; 0]);
        // A new process knows only the journal's record of the device.
        let other = fake.vmm();
        assert_eq!(other.devices().unwrap(), []);
        other.plug(&was).unwrap();
        assert_eq!(other.devices().unwrap(), [was]);
    }
}

#[test]
fn a_device_added_without_bars_is_not_a_peer() {
    let fake = Fake::start(WILLING, Value::Null, &[A]);
    let vmm = fake.vmm_with(Strict);
    let was = device(&vmm, "a");
    assert!(was.p2p);
    assert_eq!(vmm.revoke(&was).unwrap(), PeerMappings::OpenWhilePlugged);
    let alone = VmDevice {
        p2p: false,
        ..was.clone()
    };
    vmm.plug(&alone).unwrap();
    assert_eq!(vmm.devices().unwrap(), vec![alone.clone()]);
    assert_eq!(vmm.revoke(&alone).unwrap(), PeerMappings::Closed);

    let error = vmm.plug(&was).unwrap_err().to_string();
    assert_eq!(error, "VM web refused: one; of several lines; another");
}

#[test]
fn an_ended_vmm_is_a_distinct_error() {
    let fake = Fake::start(WILLING, Value::Null, &[A]);
    let vmm = fake.vmm();
    let was = device(&vmm, "a");
    drop(fake);
    assert_kept(dead(&vmm, &was));
}

#[test]
fn configurations_that_need_two_contexts_are_refused() {
    let fake = Fake::start(WILLING, Value::Null, &[A, B]);
    let vmm = fake.vmm();
    let peers = vmm.devices().unwrap();
    let refused = |vmm: &CloudHypervisorVmm, devices: &[VmDevice], after: &[RouteChange]| {
        let proposed = ProposedDevices {
            devices,
            routes: after,
            holes: &BTreeMap::new(),
        };
        vmm.could_have(&proposed).map_err(|error| error.to_string())
    };
    assert_eq!(refused(&vmm, &peers, &[]), Ok(()));
    let with = |change: fn(&mut VmDevice)| {
        let mut devices = peers.clone();
        change(&mut devices[1]);
        devices
    };
    let other = with(|device| device.p2p = false);
    let error = refused(&vmm, &other, &[]).unwrap_err();
    assert!(
        error.contains(B.1) && error.contains("one IOMMU context"),
        "{error}"
    );
    let apart = with(|device| device.domain = Some("left".to_owned()));
    assert!(
        refused(&vmm, &apart, &[])
            .unwrap_err()
            .contains("two domains")
    );
    let route = |after| RouteChange {
        from: A.1.parse().unwrap(),
        to: B.1.parse().unwrap(),
        before: Route::HostBridge,
        after,
    };
    let straight = refused(&vmm, &peers, &[route(Route::SwitchLocal)]);
    assert!(straight.unwrap_err().contains("--route iommu"));
    assert_eq!(refused(&vmm, &peers, &[route(Route::HostBridge)]), Ok(()));

    let off = Fake::start(WILLING, json!({"vfio_p2p_dma": false}), &[A, B]);
    let vmm = off.vmm();
    assert!(vmm.devices().unwrap().iter().all(|device| !device.p2p));
    assert!(
        refused(&vmm, &peers, &[])
            .unwrap_err()
            .contains("--joinable")
    );
    assert_eq!(refused(&vmm, &vmm.devices().unwrap(), &[]), Ok(()));
}

#[test]
fn certain_memory_holes_are_refused() {
    let fake = Fake::start(WILLING, Value::Null, &[A, B]);
    let devices = fake.vmm().devices().unwrap();
    let hole = |range, certain| MemoryHole {
        range,
        port: "0000:01:00.0".parse().unwrap(),
        cause: HoleCause::Switch,
        certain,
    };
    let ask = |vmm: &CloudHypervisorVmm, hole: MemoryHole| {
        let function = B.1.parse().unwrap();
        vmm.could_have(&ProposedDevices {
            devices: &devices,
            routes: &[],
            holes: &BTreeMap::from([(function, vec![hole])]),
        })
    };
    let inside = hole(0x1000_0000..=0x3fff_ffff, true);
    let error = ask(&fake.vmm(), inside.clone()).unwrap_err();
    let VmmError::Memory {
        vm,
        memory,
        hole: found,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (vm.as_str(), memory, found),
        ("web", &(0..=0x1fff_ffff), &inside)
    );
    assert_eq!(
        ask(&fake.vmm(), hole(0x2000_0000..=0x3fff_ffff, true)),
        Ok(())
    );
    assert_eq!(ask(&fake.vmm(), hole(0..=u64::MAX, false)), Ok(()));
    let unknown = ask(&fake.vmm_with(Strict), inside).unwrap_err();
    assert!(unknown.to_string().contains("is unknown"), "{unknown}");
}
