//! A lab host that several tests of one program share, one after the other.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use crate::host::Lab;
use crate::profile::Profile;

/// A lab in a `static`, booted by the first test that uses it. It lives as long as the test program and keeps its slot,
/// so such a program boots no other lab.
pub struct SharedLab {
    profile: &'static str,
    name: &'static str,
    systemd: bool,
    acs: bool,
    trace: bool,
    lab: OnceLock<Result<Lab, String>>,
    turn: Mutex<()>,
}

/// Whether a test program is the variant for ports with ACS. Such a program includes the file of the plain one, and its
/// name (`env!("CARGO_CRATE_NAME")`) is that of the plain one followed by `_acs`.
#[must_use]
pub const fn is_acs_variant(program: &str) -> bool {
    matches!(program.as_bytes(), [.., b'_', b'a', b'c', b's'])
}

/// Exclusive use of the lab by one test.
pub struct Turn<'a> {
    lab: &'a Lab,
    _turn: MutexGuard<'a, ()>,
}

impl SharedLab {
    /// A lab of a profile under `resources/lab`. It is booted on first use.
    #[must_use]
    pub const fn new(profile: &'static str, name: &'static str) -> Self {
        Self {
            profile,
            name,
            systemd: false,
            acs: false,
            trace: false,
            lab: OnceLock::new(),
            turn: Mutex::new(()),
        }
    }

    /// Makes systemd the first process of the lab.
    #[must_use]
    pub const fn with_systemd(mut self) -> Self {
        self.systemd = true;
        self
    }

    /// With `acs`, adds ACS, egress control included, to the downstream ports of the machine's switches, and a root
    /// complex that routes: requests that take the direct route without ACS go through the IOMMU then.
    #[must_use]
    pub const fn with_acs(mut self, acs: bool) -> Self {
        self.acs = acs;
        self
    }

    /// Makes [`Lab::trace`] return the routes of requests.
    #[must_use]
    pub const fn with_trace(mut self) -> Self {
        self.trace = true;
        self
    }

    /// Waits for this test's turn.
    ///
    /// # Panics
    /// The lab cannot be booted. All tests that need it then fail with the same reason.
    pub fn turn(&self) -> Turn<'_> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = self.lab.get_or_init(|| {
            Profile::named(self.profile)
                .and_then(|mut profile| {
                    profile.machine.systemd |= self.systemd;
                    profile.machine.trace |= self.trace;
                    if self.acs {
                        profile.give_acs();
                    }
                    Lab::boot(&profile, self.name)
                })
                .map_err(|error| format!("{error:#}"))
        });
        match lab {
            Ok(lab) => Turn { lab, _turn: turn },
            Err(error) => panic!("no lab to test in: {error}"),
        }
    }
}

impl Deref for Turn<'_> {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // A lab in a static is never dropped, so its post-mortem is saved at the end of the turn that failed.
        if thread::panicking() {
            self.lab.post_mortem();
        }
    }
}
