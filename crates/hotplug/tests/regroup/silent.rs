//! A stopped VMM beside one that answers.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hotplug::regroup::{Outcome, Regroup, RegroupError, RemoteVmm, Vmm};
use tempfile::TempDir;
use vmm_api::{Client, connect};

use crate::guests::Guest;
use crate::{A, B, Bench, C, sbdf};

/// Time limit for an unrelated transaction.
const SOON: Duration = Duration::from_secs(1);

/// A socket whose listener accepts no connections.
struct Stopped {
    dir: TempDir,
    listener: UnixListener,
    _pending: Vec<UnixStream>,
}

impl Stopped {
    /// With this number of connections waiting, or as many as the backlog takes.
    fn with_pending(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let pending = (0..count).map_while(|_| connect(&path, Duration::from_millis(1)).ok());
        Self {
            _pending: pending.collect(),
            dir,
            listener,
        }
    }

    /// With a full backlog.
    fn full() -> Self {
        let stopped = Self::with_pending(1);
        // A backlog of 0 takes one connection.
        rustix::net::listen(&stopped.listener, 0).unwrap();
        stopped
    }

    fn vmm(&self) -> RemoteVmm {
        RemoteVmm::new("stopped", Client::new(self.dir.path().join("api")))
    }
}

/// Checks the duration of a call.
fn timed<T>(what: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = what();
    assert!(started.elapsed() < SOON, "it took {:?}", started.elapsed());
    done
}

#[test]
fn a_stopped_vmm_does_not_delay_unrelated_transactions() {
    for stopped in [Stopped::with_pending(300), Stopped::full()] {
        let bench = Bench::new();
        let (web, stopped) = (Guest::new("web", &[sbdf(A), sbdf(B)]), stopped.vmm());
        let vmms = [&stopped as &dyn Vmm, &web];
        let plan = bench.join(&[A, B]);
        let regroup = Regroup::new(&bench.host, &vmms, bench.state());
        let forecast = timed(|| regroup.check(&plan)).unwrap();
        assert_eq!(forecast.blockers, []);
        assert_eq!(forecast.unplug.len(), 2);
        let report = timed(|| bench.apply(&plan, &vmms)).unwrap();
        assert_eq!(report.outcome, Outcome::New);
        assert_eq!(web.has(), [sbdf(A), sbdf(B)]);
    }
}

#[test]
fn a_stopped_vmm_blocks_transactions_that_may_affect_it() {
    let stopped = Stopped::full();
    // A is open, or will get into the group of an open device.
    for open in [A, C] {
        let bench = Bench::new();
        let topology = bench.host.topology();
        let group = topology.get(sbdf(open)).unwrap().group().unwrap();
        let descriptors = bench.host.proc_dir().join("77/fd");
        fs::create_dir_all(&descriptors).unwrap();
        symlink(format!("/dev/vfio/{group}"), descriptors.join("9")).unwrap();
        let web = Guest::new("web", &[sbdf(B)]);
        let stopped = stopped.vmm();
        let plan = bench.join(&[A, B, C]);
        let result = bench.apply(&plan, &[&stopped as &dyn Vmm, &web]);
        let Err(RegroupError::Refused(refusal)) = result else {
            panic!("it was not refused");
        };
        let text = refusal.to_string();
        assert!(
            text.contains("VM stopped refused: vm.info: no answer within"),
            "{text}"
        );
    }
}
