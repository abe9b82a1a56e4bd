//! The life of a VM, and what may be done when.
//!
//! ```text
//!            create            boot             pause
//!   Absent ─────────▶ Created ───────▶ Running ────────▶ Paused
//!      ▲      delete  │  ▲    shutdown │ ▲ └─ reboot      │ │ ▲
//!      └──────────────┘  └─────────────┘ └───── resume ───┘ │ │
//!                        ▲                                  │ │
//!                        └──────────── shutdown ────────────┘ reboot leads back to Running
//! ```
//! `delete` shuts a VM down that runs, and is done where there is none.

use hotplug::api::Failure;

/// Where the VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Nobody has described one.
    Absent,
    /// It is described, and not built.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped.
    Paused,
}

/// What is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Boot,
    Shutdown,
    Delete,
    Reboot,
    Pause,
    Resume,
    PowerButton,
}

/// A step on the way to the next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Keep the description.
    Describe,
    /// Build and start.
    Start,
    /// Stop and take apart.
    Stop,
    /// Forget the description.
    Forget,
    /// Stop the vCPUs.
    Halt,
    /// Start the vCPUs again.
    Continue,
    /// Tell the guest of its power button.
    PressPowerButton,
}

impl Life {
    /// The next state and how to get there, or why it cannot be.
    pub(super) fn next(self, verb: Verb) -> Result<(Self, &'static [Effect]), Failure> {
        use Effect::{Continue, Describe, Forget, Halt, PressPowerButton, Start, Stop};
        use Life::{Absent, Created, Paused, Running};

        match (self, verb) {
            (Absent, Verb::Create) => Ok((Created, &[Describe])),
            (Created | Running | Paused, Verb::Create) | (Running | Paused, Verb::Boot) => {
                Err(Failure::AlreadyCreated)
            }
            (Created, Verb::Boot) => Ok((Running, &[Start])),
            (Running | Paused, Verb::Shutdown) => Ok((Created, &[Stop])),
            (Absent, Verb::Delete) => Ok((Absent, &[])),
            (Created, Verb::Delete) => Ok((Absent, &[Forget])),
            (Running | Paused, Verb::Delete) => Ok((Absent, &[Stop, Forget])),
            (Running | Paused, Verb::Reboot) => Ok((Running, &[Stop, Start])),
            (Running, Verb::Pause) => Ok((Paused, &[Halt])),
            (Paused, Verb::Resume) => Ok((Running, &[Continue])),
            (Paused, Verb::Pause) => Err(Failure::State("Paused to Paused".to_owned())),
            (Running, Verb::Resume) => Err(Failure::State("Running to Running".to_owned())),
            (Running, Verb::PowerButton) => Ok((Running, &[PressPowerButton])),
            (Paused, Verb::PowerButton) => Ok((Paused, &[PressPowerButton])),
            (
                Absent,
                Verb::Boot
                | Verb::Shutdown
                | Verb::Reboot
                | Verb::Pause
                | Verb::Resume
                | Verb::PowerButton,
            ) => Err(Failure::NotCreated),
            (
                Created,
                Verb::Shutdown | Verb::Reboot | Verb::Pause | Verb::Resume | Verb::PowerButton,
            ) => Err(Failure::NotRunning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [Life; 4] = [Life::Absent, Life::Created, Life::Running, Life::Paused];

    /// What every state makes of a verb, in the order of [`STATES`]; in words, as a table is read.
    fn outcomes(verb: Verb) -> [String; 4] {
        STATES.map(|state| match state.next(verb) {
            Ok((next, effects)) => format!("{next:?} {effects:?}"),
            Err(error) => error.to_string(),
        })
    }

    #[test]
    fn every_state_knows_every_verb() {
        const ABSENT: &str = "VM is not created";
        const THERE: &str = "VM is already created";
        const IDLE: &str = "VM is not running";
        for (verb, expected) in [
            (Verb::Create, ["Created [Describe]", THERE, THERE, THERE]),
            (Verb::Boot, [ABSENT, "Running [Start]", THERE, THERE]),
            (
                Verb::Shutdown,
                [ABSENT, IDLE, "Created [Stop]", "Created [Stop]"],
            ),
            (
                Verb::Delete,
                [
                    "Absent []",
                    "Absent [Forget]",
                    "Absent [Stop, Forget]",
                    "Absent [Stop, Forget]",
                ],
            ),
            (
                Verb::Reboot,
                [
                    ABSENT,
                    IDLE,
                    "Running [Stop, Start]",
                    "Running [Stop, Start]",
                ],
            ),
            (
                Verb::Pause,
                [
                    ABSENT,
                    IDLE,
                    "Paused [Halt]",
                    "invalid VM state transition: Paused to Paused",
                ],
            ),
            (
                Verb::Resume,
                [
                    ABSENT,
                    IDLE,
                    "invalid VM state transition: Running to Running",
                    "Running [Continue]",
                ],
            ),
            (
                Verb::PowerButton,
                [
                    ABSENT,
                    IDLE,
                    "Running [PressPowerButton]",
                    "Paused [PressPowerButton]",
                ],
            ),
        ] {
            assert_eq!(outcomes(verb), expected, "{verb:?}");
        }
    }
}
