//! What is as it was, however often groups are changed and changed back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lab::live::{Holdings, Live};
use lab::{Daemon, Lab};

/// What the allocators may keep, in KiB.
const SLACK_KB: u64 = 1024;
/// How long anything may take to be as it was.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the host, a VMM and the daemon have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Belongings {
    pub(crate) settings: String,
    /// Who is with whom; numbers are new each time.
    groups: BTreeSet<Vec<String>>,
    vmm: Holdings,
    daemon_files: usize,
}

impl Belongings {
    pub(crate) fn now(lab: &Lab, live: &Live<'_>, daemon: &Daemon<'_>) -> Self {
        let groups = lab.groups().unwrap().into_iter();
        Self {
            settings: lab.settings().unwrap(),
            groups: groups.map(|(_, members)| members).collect(),
            vmm: live.holdings(),
            daemon_files: daemon.open_files(),
        }
    }

    /// All that is counted. Memory in use may be more by what an allocator keeps, and files fewer: a connection that has
    /// been used may be open a moment longer.
    fn counted(&self, before: &Self) -> Self {
        let mut counted = self.clone();
        counted.vmm.resident_kb = before.vmm.resident_kb;
        counted.vmm.files = self.vmm.files.max(before.vmm.files);
        counted.daemon_files = self.daemon_files.max(before.daemon_files);
        counted
    }

    /// Expects the host to come to have what it had.
    pub(crate) fn are_back(&self, lab: &Lab, live: &Live<'_>, daemon: &Daemon<'_>) {
        let started = Instant::now();
        let mut now = Self::now(lab, live, daemon);
        while now.counted(self) != *self && started.elapsed() < PATIENCE {
            now = Self::now(lab, live, daemon);
        }
        assert_eq!(now.counted(self), *self);
        let most = self.vmm.resident_kb + SLACK_KB;
        assert!(now.vmm.resident_kb <= most, "{now:?}, and was {self:?}");
    }
}
