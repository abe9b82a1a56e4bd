//! The devices of virtual machines, some of which may not answer.
//!
//! All VMMs are queried at once, with a short timeout. A VMM that has not answered by then gets more time if it may
//! have a relevant device. Otherwise it is skipped, so that it delays no unrelated transaction.

use std::thread;
use std::time::Duration;

use super::blocker::Blocker;
use super::vmm::{VmDevice, Vmm, VmmError};

/// Timeout for a VMM without relevant devices.
const MOMENT: Duration = Duration::from_millis(300);
/// Timeout for a VMM that may have a relevant device.
const PATIENCE: Duration = Duration::from_secs(5);

/// The devices of virtual machines.
#[derive(Default)]
pub(super) struct Holdings {
    /// The devices of all VMMs that answered.
    pub(super) assigned: Vec<VmDevice>,
    /// The VMMs that did not answer and may have a relevant device.
    pub(super) silent: Vec<Blocker>,
}

impl Holdings {
    /// Queries all VMMs. `unexplained` returns whether a process other than the owners of the given devices has a
    /// relevant device open.
    pub(super) fn query<E>(
        vmms: &[&dyn Vmm],
        unexplained: impl Fn(&[VmDevice]) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let mut holdings = Self::default();
        let mut errors = holdings.collect_from(vmms, MOMENT);
        if !errors.is_empty() && unexplained(&holdings.assigned)? {
            let silent: Vec<&dyn Vmm> = errors.into_iter().map(|(vmm, _)| vmm).collect();
            errors = holdings.collect_from(&silent, PATIENCE);
            if !errors.is_empty() && unexplained(&holdings.assigned)? {
                let blockers = errors.iter().map(|(_, error)| Blocker::Vmm {
                    error: error.to_string(),
                });
                holdings.silent = blockers.collect();
                return Ok(holdings);
            }
        }
        for (_, error) in errors {
            log::warn!("{error} (it has none of the relevant devices)");
        }
        Ok(holdings)
    }

    /// The devices of all VMMs that answer within the short timeout.
    pub(super) fn query_briefly(vmms: &[&dyn Vmm]) -> Vec<VmDevice> {
        let mut holdings = Self::default();
        holdings.collect_from(vmms, MOMENT);
        holdings.assigned
    }

    /// Collects the devices of each VMM and returns the VMMs that did not answer. A VMM that has ended has no devices.
    fn collect_from<'v>(
        &mut self,
        vmms: &[&'v dyn Vmm],
        patience: Duration,
    ) -> Vec<(&'v dyn Vmm, VmmError)> {
        let answers = in_parallel(vmms, |vmm| vmm.devices_within(patience));
        let mut errors = Vec::new();
        for (vmm, answer) in vmms.iter().zip(answers) {
            match answer {
                Ok(devices) => self.assigned.extend(devices),
                Err(VmmError::Gone { .. }) => {}
                Err(error) => errors.push((*vmm, error)),
            }
        }
        errors
    }
}

/// Makes a call for each item, each in a thread of its own. The answers are in the order of the items.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], call: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let call = &call;
    thread::scope(|scope| {
        let asked: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(move || call(item)))
            .collect();
        let join = |asked: thread::ScopedJoinHandle<'_, R>| {
            let answer = asked.join();
            answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        asked.into_iter().map(join).collect()
    })
}
