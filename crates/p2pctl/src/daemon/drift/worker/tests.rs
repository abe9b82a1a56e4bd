//! A worker beside a VMM that hangs, refuses, dies and comes back, on a host that changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hotplug::regroup::{
    DeviceFacts, PeerMappings, ProposedDevices, VmAddress, VmDevice, Vmm, VmmError, WithheldDevice,
};
use iommu_group::{GroupId, Topology, UntranslatedReach};
use vmm_api::EventLog;

use super::*;

const SWITCH: &str = include_str!("../../../../../../resources/topologies/switch-four-nvme.json");

const SOON: Duration = Duration::from_secs(10);

fn at(text: &str) -> Sbdf {
    text.parse().unwrap()
}

fn device(id: &str, function: &str) -> VmDevice {
    VmDevice {
        vm: "web".to_owned(),
        id: id.to_owned(),
        function: at(function),
        p2p: true,
        domain: None,
        expose: BTreeSet::new(),
        slot: None,
    }
}

/// A host, and a VM on it. Whoever asks its VMM while that hangs gets no answer within their patience.
struct Fake {
    host: Mutex<Snapshot>,
    devices: Mutex<Vec<VmDevice>>,
    log: Mutex<Vec<String>>,
    hangs: AtomicBool,
    is_gone: AtomicBool,
    keeps: AtomicBool,
    /// Requests to open are carried out, and not answered.
    opens_late: AtomicBool,
    takes_no_peers: AtomicBool,
    busy: AtomicBool,
    transactions: AtomicU64,
    given_back: AtomicU64,
    requests: AtomicU64,
    /// What is noted of devices.
    withheld: Mutex<Vec<WithheldDevice>>,
    has_ended: AtomicBool,
}

impl Fake {
    fn new() -> Arc<Self> {
        let topology = Topology::from_fixture(SWITCH).unwrap();
        Arc::new(Self {
            host: Mutex::new(Snapshot::of(Arc::new(topology))),
            devices: Mutex::new(vec![device("one", "03:00.0"), device("two", "04:00.0")]),
            log: Mutex::default(),
            hangs: AtomicBool::default(),
            is_gone: AtomicBool::default(),
            keeps: AtomicBool::default(),
            opens_late: AtomicBool::default(),
            takes_no_peers: AtomicBool::default(),
            busy: AtomicBool::default(),
            transactions: AtomicU64::default(),
            given_back: AtomicU64::default(),
            requests: AtomicU64::default(),
            withheld: Mutex::default(),
            has_ended: AtomicBool::default(),
        })
    }

    fn set(flag: &AtomicBool, on: bool) {
        flag.store(on, Ordering::SeqCst);
    }

    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn did(&self, what: &str) -> bool {
        self.log().iter().any(|line| line == what)
    }

    fn note(&self, what: &str, device: &VmDevice) {
        self.log
            .lock()
            .unwrap()
            .push(format!("{what} {}", device.id));
    }

    fn facts(&self, function: &str, change: impl FnOnce(&mut DeviceFacts)) {
        change(
            self.host
                .lock()
                .unwrap()
                .functions
                .get_mut(&at(function))
                .unwrap(),
        );
    }

    fn set_group(&self, function: &str, group: u32) {
        self.facts(function, |facts| facts.group = Some(GroupId(group)));
    }

    fn expose(&self, function: &str, to: &str) {
        let exposure = Exposure {
            function: at(to),
            to: vec![at(function)],
            through: Vec::new(),
            reach: UntranslatedReach::Yes,
        };
        self.facts(function, |facts| {
            facts.exposures.get_or_insert_default().insert(exposure);
        });
    }

    /// Starts a worker that is told of a change.
    fn alarm(self: &Arc<Self>, before: Snapshot, changed: &str) -> Arc<Inbox> {
        let alarm = Alarm {
            before: Arc::new(before),
            changed: BTreeMap::from([(at(changed), "it changed".to_owned())]),
        };
        let inbox = Arc::new(Inbox::default());
        assert!(inbox.alarm(&alarm));
        let env = Arc::new(Reached(Arc::clone(self)));
        Worker::start("web".to_owned(), env, Arc::clone(&inbox)).unwrap();
        inbox
    }

    fn host(&self) -> Snapshot {
        self.host.lock().unwrap().clone()
    }
}

/// The world that a worker sees.
struct Reached(Arc<Fake>);

/// A connection to the VMM, and how long an answer is waited for.
struct Connection {
    fake: Arc<Fake>,
    patience: Duration,
}

impl Connection {
    fn answered(&self) -> Result<(), VmmError> {
        let vm = "web".to_owned();
        self.fake.requests.fetch_add(1, Ordering::SeqCst);
        if Fake::is(&self.fake.is_gone) {
            return Err(VmmError::Gone { vm });
        }
        let started = Instant::now();
        while Fake::is(&self.fake.hangs) {
            if started.elapsed() >= self.patience {
                let reason = "no answer".to_owned();
                return Err(VmmError::Refused { vm, reason });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn refused(&self, reason: &str) -> VmmError {
        VmmError::Refused {
            vm: "web".to_owned(),
            reason: reason.to_owned(),
        }
    }
}

impl Vmm for Connection {
    fn address(&self) -> Option<VmAddress> {
        None
    }

    fn name(&self) -> &str {
        "web"
    }

    fn devices(&self) -> Result<Vec<VmDevice>, VmmError> {
        self.answered()?;
        Ok(self.fake.devices.lock().unwrap().clone())
    }

    fn could_have(&self, _: &ProposedDevices<'_>) -> Result<(), VmmError> {
        Ok(())
    }

    fn revoke(&self, device: &VmDevice) -> Result<PeerMappings, VmmError> {
        self.answered()?;
        self.fake.note("close", device);
        Ok(PeerMappings::Closed)
    }

    fn reopen(&self, device: &VmDevice) -> Result<(), VmmError> {
        self.answered()?;
        self.fake.note("open", device);
        match Fake::is(&self.fake.opens_late) {
            true => Err(self.refused("no answer")),
            false => Ok(()),
        }
    }

    fn unplug(&self, device: &VmDevice, _: Duration) -> Result<(), VmmError> {
        self.answered()?;
        self.fake.note("unplug", device);
        if Fake::is(&self.fake.keeps) {
            return Err(self.refused("the guest keeps it"));
        }
        let mut devices = self.fake.devices.lock().unwrap();
        devices.retain(|other| other.id != device.id);
        Ok(())
    }

    fn plug(&self, device: &VmDevice) -> Result<(), VmmError> {
        self.answered()?;
        if device.p2p && Fake::is(&self.fake.takes_no_peers) {
            return Err(self.refused("other groups"));
        }
        let what = if device.p2p { "plug" } else { "plug alone" };
        self.fake.note(what, device);
        self.fake.devices.lock().unwrap().push(device.clone());
        Ok(())
    }
}

impl WorkerEnv for Reached {
    fn reach(&self, patience: Duration) -> Result<Guest, VmmError> {
        Ok(Arc::new(Connection {
            fake: Arc::clone(&self.0),
            patience,
        }))
    }

    fn scan(&self) -> Option<Snapshot> {
        Some(self.0.host())
    }

    fn activity(&self) -> (bool, u64) {
        let count = self.0.transactions.load(Ordering::SeqCst);
        (Fake::is(&self.0.busy), count)
    }

    fn given_back(&self, _: &VmDevice) -> Option<u64> {
        Some(self.0.given_back.load(Ordering::SeqCst)).filter(|count| *count > 0)
    }

    fn is_accepted(&self, _: &VmDevice, _: &Exposure) -> bool {
        false
    }

    fn withhold(&self, device: &VmDevice, good: &DeviceFacts) -> Result<(), String> {
        let mut withheld = self.0.withheld.lock().unwrap();
        withheld.push(WithheldDevice {
            device: device.clone(),
            vmm: 1,
            good: good.clone(),
        });
        Ok(())
    }

    fn release(&self, id: &str) -> Result<(), String> {
        let mut withheld = self.0.withheld.lock().unwrap();
        withheld.retain(|other| other.device.id != id);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        Fake::is(&self.0.has_ended)
    }

    fn drift_events(&self) -> SyncSender<DriftEvent> {
        super::super::emitter::start(EventLog::new()).unwrap()
    }
}

#[test]
fn a_host_that_is_as_before_costs_the_guest_nothing_but_closed_mappings() {
    let fake = Fake::new();
    let inbox = fake.alarm(fake.host(), "02:00.0");
    within("opened", || fake.did("open one") && fake.did("open two"));
    within("at rest", || inbox.is_at_rest());
    let mut log = fake.log();
    log.sort();
    assert_eq!(log, ["close one", "close two", "open one", "open two"]);
}

#[test]
fn a_device_on_another_path_is_plugged_anew_with_its_peers_or_without_them() {
    for (takes_no_peers, how) in [(false, "plug"), (true, "plug alone")] {
        let fake = Fake::new();
        let before = fake.host();
        fake.set_group("03:00.0", 77);
        Fake::set(&fake.takes_no_peers, takes_no_peers);
        let inbox = fake.alarm(before, "03:00.0");
        let back = |id: &str| fake.did(&format!("{how} {id}"));
        within("back", || back("one") && back("two"));
        within("at rest", || inbox.is_at_rest());
        let log = fake.log();
        let position = |line: &str| log.iter().position(|other| other == line).unwrap();
        let last = position("unplug one").max(position("unplug two"));
        assert!(
            position("close one").max(position("close two")) < last,
            "{log:?}"
        );
        assert!(position(&format!("{how} one")) > last, "{log:?}");
    }
}

#[test]
fn a_device_that_the_guest_keeps_is_not_opened_while_the_host_is_different() {
    let fake = Fake::new();
    let before = fake.host();
    fake.set_group("03:00.0", 77);
    Fake::set(&fake.keeps, true);
    let inbox = fake.alarm(before.clone(), "03:00.0");
    within("asked", || fake.did("unplug one") && fake.did("unplug two"));
    thread::sleep(Duration::from_secs(2));
    assert!(!inbox.is_at_rest());
    assert!(
        !fake
            .log()
            .iter()
            .any(|line| line.starts_with("open") || line.starts_with("plug"))
    );
    // The host is as it was: a check finds that, and nothing but a check opens.
    *fake.host.lock().unwrap() = before;
    within("opened", || fake.did("open one") && fake.did("open two"));
}

#[test]
fn a_vmm_that_hangs_is_asked_until_it_answers_and_closed_then() {
    let fake = Fake::new();
    Fake::set(&fake.hangs, true);
    let inbox = fake.alarm(fake.host(), "02:00.0");
    thread::sleep(Duration::from_secs(3));
    assert!(!inbox.is_at_rest() && fake.log().is_empty());
    let requests = fake.requests.load(Ordering::SeqCst);
    assert!((2..=4).contains(&requests), "{requests} in three seconds");
    Fake::set(&fake.hangs, false);
    let started = Instant::now();
    within("closed", || fake.did("close one") && fake.did("close two"));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn what_was_opened_without_an_answer_is_closed_twice_and_checked_again() {
    let fake = Fake::new();
    fake.devices.lock().unwrap().pop();
    Fake::set(&fake.opens_late, true);
    let inbox = fake.alarm(fake.host(), "02:00.0");
    within("opened", || fake.did("open one"));
    Fake::set(&fake.opens_late, false);
    within("at rest", || inbox.is_at_rest() && fake.log().len() >= 5);
    let expected = [
        "close one",
        "open one",
        "close one",
        "close one",
        "open one",
    ];
    assert_eq!(fake.log(), expected);
}

#[test]
fn an_exposed_device_stays_out_until_nobody_is_exposed() {
    let fake = Fake::new();
    let before = fake.host();
    fake.expose("03:00.0", "06:00.0");
    let inbox = fake.alarm(before.clone(), "03:00.0");
    within("the other is back", || fake.did("plug two"));
    thread::sleep(Duration::from_secs(2));
    assert!(!fake.did("plug one") && !inbox.is_at_rest());
    *fake.host.lock().unwrap() = before;
    within("back", || fake.did("plug one"));
}

#[test]
fn a_worker_of_another_daemon_gives_back_what_was_taken_away_or_checks_what_was_not() {
    for is_there in [false, true] {
        let fake = Fake::new();
        let before = fake.host();
        fake.expose("03:00.0", "06:00.0");
        Fake::set(&fake.keeps, is_there);
        fake.alarm(before.clone(), "03:00.0");
        within("asked", || fake.did("unplug one"));
        within("noted", || !fake.withheld.lock().unwrap().is_empty());
        Fake::set(&fake.has_ended, true);
        thread::sleep(Duration::from_secs(1));
        Fake::set(&fake.has_ended, false);
        fake.log.lock().unwrap().clear();

        let inbox = Arc::new(Inbox::default());
        for device in &*fake.withheld.lock().unwrap() {
            assert!(inbox.withheld(device));
        }
        let env = Arc::new(Reached(Arc::clone(&fake)));
        Worker::start("web".to_owned(), env, Arc::clone(&inbox)).unwrap();
        thread::sleep(Duration::from_secs(2));
        assert!(
            !fake.did("plug one") && !fake.did("open one"),
            "it is exposed yet: {:?}",
            fake.log()
        );
        *fake.host.lock().unwrap() = before;
        let back = if is_there { "open one" } else { "plug one" };
        within("back", || fake.did(back));
        within("forgotten", || fake.withheld.lock().unwrap().is_empty());
    }
}

#[test]
fn exposures_within_the_vm_are_none() {
    let fake = Fake::new();
    let before = fake.host();
    fake.expose("03:00.0", "04:00.0");
    fake.alarm(before, "03:00.0");
    within("opened", || fake.did("open one") && fake.did("open two"));
}

#[test]
fn a_device_without_peers_is_left_alone_unless_somebody_is_exposed() {
    let fake = Fake::new();
    let before = fake.host();
    fake.devices.lock().unwrap().retain_mut(|device| {
        device.p2p = false;
        device.id == "one"
    });
    fake.set_group("03:00.0", 77);
    let inbox = fake.alarm(before.clone(), "03:00.0");
    thread::sleep(Duration::from_secs(1));
    assert!(
        inbox.is_at_rest() && fake.log().is_empty(),
        "{:?}",
        fake.log()
    );
    fake.expose("03:00.0", "06:00.0");
    fake.alarm(before, "03:00.0");
    within("unplugged", || fake.did("unplug one"));
}

#[test]
fn while_a_transaction_is_under_way_mappings_are_closed_and_nothing_else_is_done() {
    let fake = Fake::new();
    Fake::set(&fake.busy, true);
    let inbox = fake.alarm(fake.host(), "02:00.0");
    within("closed", || fake.did("close one") && fake.did("close two"));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(fake.log().len(), 2);
    Fake::set(&fake.busy, false);
    within("opened", || fake.did("open one") && fake.did("open two"));
    within("at rest", || inbox.is_at_rest());
}

#[test]
fn what_a_transaction_has_given_back_is_good_as_it_is_now() {
    let fake = Fake::new();
    let before = fake.host();
    fake.set_group("03:00.0", 77);
    Fake::set(&fake.keeps, true);
    fake.alarm(before, "03:00.0");
    within("kept", || fake.did("unplug one") && fake.did("unplug two"));
    // It has begun before it gives back.
    fake.transactions.store(1, Ordering::SeqCst);
    Fake::set(&fake.busy, true);
    thread::sleep(Duration::from_secs(1));
    Fake::set(&fake.busy, false);
    fake.given_back.store(1, Ordering::SeqCst);
    within("opened", || fake.did("open one") && fake.did("open two"));
}

#[test]
fn a_vmm_that_is_gone_ends_the_worker_and_one_that_was_gone_once_does_not() {
    let fake = Fake::new();
    Fake::set(&fake.is_gone, true);
    let inbox = fake.alarm(fake.host(), "02:00.0");
    within("ended", || inbox.is_closed());
    let fake = Fake::new();
    Fake::set(&fake.is_gone, true);
    let inbox = fake.alarm(fake.host(), "02:00.0");
    within("asked", || fake.requests.load(Ordering::SeqCst) > 0);
    Fake::set(&fake.is_gone, false);
    within("opened", || fake.did("open one") && fake.did("open two"));
    assert!(!inbox.is_closed());
}

fn within(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < SOON, "{what}: not within {SOON:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
