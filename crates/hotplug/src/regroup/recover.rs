//! Recovery of interrupted transactions and resets.

use std::fs;

use super::difference::Difference;
use super::error::{RegroupError, StateError};
use super::record::Record;
use super::transaction::{Observer, Regroup, Report};

/// Result of a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The transaction, if there was one.
    pub report: Option<Report>,
    /// Differences that an interrupted reset left and that cannot be removed.
    pub reset: Vec<Difference>,
}

impl Regroup<'_> {
    /// Ends what was interrupted. A transaction stays open until all devices are back.
    ///
    /// # Errors
    /// [`StateError::Journal`] if the journal cannot be read. The file is renamed then, and the next call has nothing
    /// to do.
    pub fn recover(&self, observer: &mut Observer<'_>) -> Result<Recovered, RegroupError> {
        let mut recovered = Recovered::default();
        if self.unfinished().is_empty() {
            return Ok(recovered);
        }
        let lock = self.state.lock()?;
        recovered.reset = self.recover_reset()?;
        let running = self.state.running();
        if !running.exists() {
            return Ok(recovered);
        }
        let mut journal = match self.state.open() {
            Ok(Some(journal)) => journal,
            Ok(None) => {
                // The transaction did not begin.
                fs::remove_file(&running).map_err(StateError::io("remove", &running))?;
                return Ok(recovered);
            }
            Err(error) => return Err(self.state.set_aside(&running, error).into()),
        };
        if journal.end().is_none() {
            let boot = self.sysfs_ops().boot_id()?;
            self.record(&mut journal, Record::Resumed { boot }, observer)?;
        }
        recovered.report = Some(self.drive(&mut journal, observer)?);
        drop(lock);
        Ok(recovered)
    }
}
