//! The daemon beside VMMs at sockets, on a host that is a directory.

mod host;
mod vmm;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hotplug::regroup::{LinuxHost, StateDir};
use iommu_group::{Goals, Kernel, Plan, PlanOptions, Sysfs};
use vmm_api::{ApiServer, Client, EventLog, Next};

use super::super::{Calls, CheckInputs, Guests, Host, NamedSocket, TransactionRunner, VmSockets};
use super::Drift;
use crate::cli::Global;
use crate::show::Colour;
use host::{TestHost, at, within};
use vmm::FakeVmm;

const SECOND: Duration = Duration::from_secs(1);

/// For what has no deadline of its own.
const SOON: Duration = Duration::from_secs(10);

struct Daemon {
    _drift: Drift,
    runner: TransactionRunner,
    events: Arc<Mutex<Vec<String>>>,
    _server: ApiServer,
    _socket: tempfile::TempDir,
}

impl Daemon {
    fn start(host: &TestHost, vmms: &[(&str, &FakeVmm)]) -> Self {
        Self::with_policy(host, vmms, "")
    }

    fn with_policy(host: &TestHost, vmms: &[(&str, &FakeVmm)], policy: &str) -> Self {
        let named = vmms.iter().map(|(name, vmm)| NamedSocket {
            name: (*name).to_owned(),
            socket: vmm.socket(),
        });
        let guests = Guests::new(
            VmSockets {
                named: named.collect(),
                dirs: Vec::new(),
            },
            CheckInputs {
                sysfs: host.sysfs(),
                policy: iommu_group::policy::Policy::parse("policy.toml", policy).unwrap(),
            },
        );
        let log = EventLog::new();
        let proc = host.sysfs().with_file_name("proc");
        let runner = TransactionRunner::new(
            Host {
                host: LinuxHost::new(Sysfs::new(host.sysfs()), proc),
                guests,
                state: StateDir::new(host.state()),
            },
            log.clone(),
        );
        let global = Global {
            sysfs: Some(host.sysfs()),
            from: None,
            json: false,
            color: Colour::Never,
        };
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let calls = Arc::new(Calls::new(runner.clone(), global.clone()));
        let server = ApiServer::with_handler(&socket, &log, calls).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut stream = Client::new(&socket).events().unwrap();
        let emitted = Arc::clone(&events);
        thread::spawn(move || {
            while let Ok(next) = stream.next(SOON) {
                match next {
                    Next::Event(record) => emitted.lock().unwrap().push(format!(
                        "{} {:?}",
                        record.event,
                        record.properties.unwrap_or_default()
                    )),
                    Next::Quiet => {}
                    Next::End => break,
                }
            }
        });
        let daemon = Self {
            _drift: Drift::start(runner.clone(), global).unwrap(),
            runner,
            events,
            _server: server,
            _socket: dir,
        };
        // It has to know the host as it is before that changes.
        thread::sleep(SECOND / 2);
        daemon
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }

    fn emitted(&self, words: &[&str]) -> bool {
        let events = self.events();
        events
            .iter()
            .any(|event| words.iter().all(|word| event.contains(word)))
    }
}

#[test]
fn acs_that_is_less_strict_above_an_assigned_device_is_put_back_within_a_second() {
    let host = TestHost::new();
    let vmm = FakeVmm::start(&[("nvme0", "0000:03:00.0", true)]);
    let daemon = Daemon::start(&host, &[("web", &vmm)]);
    // What a VMM does not answer holds nothing up.
    vmm.stop(true);
    host.set_acs("02:00.0", 0x11);
    within(SOON, "put back", || host.acs("02:00.0") == 0x1d);
    within(SOON, "told", || {
        daemon.emitted(&["acs-restored", "0000:02:00.0", "001d"])
    });
}

#[test]
fn an_egress_vector_that_lets_more_pass_is_put_back_and_one_that_lets_less_pass_is_not() {
    let host = TestHost::new();
    host.set_egress("02:00.0", 0b1101);
    let vmm = FakeVmm::start(&[("nvme0", "0000:03:00.0", true)]);
    let daemon = Daemon::start(&host, &[("web", &vmm)]);
    host.set_egress("02:00.0", 0b0101);
    within(SOON, "put back", || host.egress("02:00.0") == 0b1101);
    within(SOON, "told", || {
        daemon.emitted(&[
            "acs-restored",
            "0000:02:00.0",
            "0031 with egress vector 0000000d",
        ])
    });
    within(SOON, "closed and opened", || {
        vmm.was_asked("close nvme0") && vmm.was_asked("open nvme0")
    });
    // Egress control itself, and the vector with it.
    host.set_egress("02:00.0", 0);
    host.set_acs("02:00.0", 0x11);
    within(SOON, "put back", || {
        host.egress("02:00.0") == 0b1101 && host.acs("02:00.0") == 0x31
    });
    host.set_egress("02:00.0", 0b1111);
    within(SOON, "told", || {
        daemon.emitted(&["drift", "0031 with egress vector 0000000f"])
    });
    thread::sleep(SECOND);
    assert_eq!(host.egress("02:00.0"), 0b1111);
}

#[test]
fn a_function_that_arrives_where_a_device_can_reach_it_is_told_and_the_device_taken_away() {
    let host = TestHost::new();
    host.set_acs("02:00.0", 0x11);
    host.remove(at("04:00.0"));
    let vmm = FakeVmm::start(&[("nvme0", "0000:03:00.0", false)]);
    let daemon = Daemon::start(&host, &[("web", &vmm)]);
    host.add(at("04:00.0"));
    within(SOON, "told", || {
        daemon.emitted(&[
            "isolation-lost",
            "0000:03:00.0",
            "0000:04:00.0",
            "0000:02:00.0",
        ])
    });
    within(SOON, "taken away", || {
        vmm.was_asked("remove nvme0") && !vmm.has("nvme0")
    });
    assert!(!vmm.was_asked("add nvme0"));
    // The function goes again, and nothing keeps the device out any more.
    host.remove(at("04:00.0"));
    within(3 * SOON, "given back", || vmm.was_asked("add nvme0"));
}

#[test]
fn a_device_that_the_guest_keeps_stays_closed_until_it_lets_go() {
    let host = TestHost::new();
    let vmm = FakeVmm::start(&[
        ("nvme0", "0000:03:00.0", true),
        ("nvme1", "0000:04:00.0", true),
    ]);
    let daemon = Daemon::start(&host, &[("web", &vmm)]);
    vmm.keep(true);
    host.set_group(at("03:00.0"), "77");
    within(SOON, "asked for", || {
        vmm.was_asked("remove nvme0") && vmm.was_asked("remove nvme1")
    });
    // Long enough for whoever would open it again.
    thread::sleep(2 * SECOND);
    assert!(vmm.was_asked("close nvme0"), "{:?}", vmm.log());
    assert!(
        !vmm.log().iter().any(|asked| asked.starts_with("open")),
        "{:?}",
        vmm.log()
    );
    assert!(
        daemon.emitted(&["device-kept-closed", "nvme0", "the guest keeps it"]),
        "{:?}",
        daemon.events()
    );
    vmm.let_go("nvme0");
    vmm.let_go("nvme1");
    within(SOON, "given back", || {
        vmm.was_asked("add nvme0") && vmm.was_asked("add nvme1")
    });
}

#[test]
fn a_stopped_vmm_delays_no_other_and_is_closed_as_soon_as_it_answers() {
    let host = TestHost::new();
    let vmm = FakeVmm::start(&[
        ("nvme0", "0000:03:00.0", true),
        ("nvme1", "0000:04:00.0", true),
    ]);
    let other = FakeVmm::start(&[
        ("nvme2", "0000:05:00.0", true),
        ("nvme3", "0000:06:00.0", true),
    ]);
    let daemon = Daemon::start(&host, &[("a", &vmm), ("b", &other)]);
    vmm.stop(true);
    // Above all of them.
    host.set_acs("00:04.0", 0x1c);
    within(SOON, "closed", || {
        other.was_asked("close nvme2") && other.was_asked("close nvme3")
    });
    // It is put back, so that they may have their mappings again.
    within(SOON, "opened again", || {
        other.was_asked("open nvme2") && other.was_asked("open nvme3")
    });
    thread::sleep(3 * SECOND);
    assert!(!vmm.was_asked("close nvme0"));
    vmm.stop(false);
    within(SOON, "closed", || {
        vmm.was_asked("close nvme0") && vmm.was_asked("close nvme1")
    });
    within(SOON, "opened again", || {
        vmm.was_asked("open nvme0") && vmm.was_asked("open nvme1")
    });
    assert!(
        vmm.has("nvme0") && other.has("nvme2"),
        "{:?}",
        daemon.events()
    );
}

#[test]
fn an_exposure_that_the_policy_accepts_is_none() {
    let host = TestHost::new();
    host.set_acs("02:00.0", 0x11);
    host.remove(at("04:00.0"));
    let vmm = FakeVmm::start(&[("nvme0", "0000:03:00.0", true)]);
    let policy = "[[expose]]\nfunction = '04:00.0'\nwhy = 'it is nobodys'";
    let daemon = Daemon::with_policy(&host, &[("web", &vmm)], policy);
    host.add(at("04:00.0"));
    thread::sleep(2 * SECOND);
    assert!(
        !daemon.emitted(&["isolation-lost"]),
        "{:?}",
        daemon.events()
    );
    assert!(vmm.log().is_empty(), "{:?}", vmm.log());
}

#[test]
fn acs_is_put_back_while_a_transaction_waits_for_a_vmm_unless_it_changes_the_port_itself() {
    let host = TestHost::new();
    let vmm = FakeVmm::start(&[("nvme0", "0000:03:00.0", true)]);
    let daemon = Daemon::start(&host, &[("web", &vmm)]);
    let topology = crate::source::scan(&host.sysfs()).unwrap();
    let goals = Goals {
        acs: [(at("02:03.0"), "001f".parse().unwrap())].into(),
        ..Goals::default()
    };
    let kernel = Kernel::of(&topology);
    let plan = Plan::make(&topology, &kernel, &goals, &PlanOptions::default()).unwrap();
    vmm.stop(true);
    thread::scope(|scope| {
        scope.spawn(|| daemon.runner.apply(plan, None));
        within(SOON, "under way", || daemon.runner.activity().0);
        host.set_acs("02:03.0", 0x11);
        host.set_acs("02:00.0", 0x11);
        within(SOON, "put back", || host.acs("02:00.0") == 0x1d);
        assert!(daemon.runner.activity().0);
        assert_eq!(host.acs("02:03.0"), 0x11);
        vmm.stop(false);
    });
}

/// How often something was asked of a VMM.
fn count(vmm: &FakeVmm, what: &str) -> usize {
    vmm.log().iter().filter(|line| *line == what).count()
}

/// A host and a VMM whose device a daemon has taken away, because a function arrived that the device reaches. The daemon has
/// ended.
fn after_a_device_was_taken_away() -> (TestHost, FakeVmm) {
    let host = TestHost::new();
    host.set_acs("02:00.0", 0x11);
    host.remove(at("04:00.0"));
    let vmm = FakeVmm::start(&[("nvme0", "0000:03:00.0", false)]);
    let daemon = Daemon::start(&host, &[("web", &vmm)]);
    host.add(at("04:00.0"));
    within(SOON, "taken away", || !vmm.has("nvme0"));
    drop(daemon);
    (host, vmm)
}

#[test]
fn a_device_that_was_taken_away_is_given_back_by_the_next_daemon_when_a_check_allows_it() {
    let (host, vmm) = after_a_device_was_taken_away();

    let daemon = Daemon::start(&host, &[("web", &vmm)]);
    within(SOON, "withheld", || {
        daemon.emitted(&["device-withheld", "nvme0", "04:00.0"])
    });
    assert_eq!(count(&vmm, "add nvme0"), 0, "it reaches the function yet");
    host.remove(at("04:00.0"));
    within(3 * SOON, "given back", || vmm.has("nvme0"));
    drop(daemon);

    // Nothing is left to be given back.
    let _daemon = Daemon::start(&host, &[("web", &vmm)]);
    thread::sleep(2 * SECOND);
    assert_eq!(count(&vmm, "add nvme0"), 1);
}

#[test]
fn a_vmm_that_was_started_anew_is_not_given_what_another_had() {
    let (host, vmm) = after_a_device_was_taken_away();
    host.remove(at("04:00.0"));
    vmm.set_pid(2);
    let _daemon = Daemon::start(&host, &[("web", &vmm)]);
    thread::sleep(3 * SECOND);
    assert_eq!(count(&vmm, "add nvme0"), 0);
}
