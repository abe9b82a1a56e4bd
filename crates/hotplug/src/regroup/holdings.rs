//! What virtual machines have, of which some may be stopped.
//!
//! All are asked at once, and each may take a moment only. One that has not answered then is waited for if it may have a
//! device that matters, and is done without otherwise: it delays nothing that does not concern it.

use std::thread;
use std::time::Duration;

use super::blocker::Blocker;
use super::vmm::{Assigned, Vmm, VmmError};

/// How long a VMM may take that concerns nobody.
const MOMENT: Duration = Duration::from_millis(300);
/// How long one may take that may have a device that matters.
const PATIENCE: Duration = Duration::from_secs(5);

/// What virtual machines have.
#[derive(Default)]
pub(super) struct Holdings {
    /// The devices of all that have answered.
    pub(super) assigned: Vec<Assigned>,
    /// Those that have not, and may have a device that matters.
    pub(super) silent: Vec<Blocker>,
}

impl Holdings {
    /// Asks all. `unexplained` says whether somebody has a device that matters open, besides those who have these.
    pub(super) fn ask<E>(
        vmms: &[&dyn Vmm],
        unexplained: impl Fn(&[Assigned]) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let mut holdings = Self::default();
        let mut errors = holdings.hear(vmms, MOMENT);
        if !errors.is_empty() && unexplained(&holdings.assigned)? {
            let silent: Vec<&dyn Vmm> = errors.into_iter().map(|(vmm, _)| vmm).collect();
            errors = holdings.hear(&silent, PATIENCE);
            if !errors.is_empty() && unexplained(&holdings.assigned)? {
                let blockers = errors.iter().map(|(_, error)| Blocker::Vmm {
                    error: error.to_string(),
                });
                holdings.silent = blockers.collect();
                return Ok(holdings);
            }
        }
        for (_, error) in errors {
            log::warn!("{error} (it has none of the devices that matter)");
        }
        Ok(holdings)
    }

    /// The devices of all that answer in a moment.
    pub(super) fn glance(vmms: &[&dyn Vmm]) -> Vec<Assigned> {
        let mut holdings = Self::default();
        holdings.hear(vmms, MOMENT);
        holdings.assigned
    }

    /// Hears what each has; those that do not say. One that is gone has nothing.
    fn hear<'v>(
        &mut self,
        vmms: &[&'v dyn Vmm],
        patience: Duration,
    ) -> Vec<(&'v dyn Vmm, VmmError)> {
        let answers: Vec<_> = thread::scope(|scope| {
            let asked: Vec<_> = vmms
                .iter()
                .map(|vmm| (*vmm, scope.spawn(move || vmm.devices_within(patience))))
                .collect();
            let answers = asked.into_iter().map(|(vmm, asked)| {
                let answer = asked.join();
                (
                    vmm,
                    answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                )
            });
            answers.collect()
        });
        let mut errors = Vec::new();
        for (vmm, answer) in answers {
            match answer {
                Ok(devices) => self.assigned.extend(devices),
                Err(VmmError::Gone { .. }) => {}
                Err(error) => errors.push((vmm, error)),
            }
        }
        errors
    }
}
