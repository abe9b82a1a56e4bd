//! The state of a VM, and the commands that are valid in it.
//!
//! ```text
//!            create            boot             pause
//!   Absent ─────────▶ Created ───────▶ Running ────────▶ Paused
//!      ▲      delete  │  ▲    shutdown │ ▲ └─ reboot      │ │ ▲
//!      └──────────────┘  └─────────────┘ └───── resume ───┘ │ │
//!                        ▲                                  │ │
//!                        └──────────── shutdown ────────────┘ reboot leads back to Running
//! ```
//! `delete` shuts a running VM down first, and succeeds without a VM.

use vmm_api::Failure;

/// State of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VmState {
    /// There is no configuration.
    Absent,
    /// There is a configuration; the VM is not built.
    Created,
    /// The vCPUs run.
    Running,
    /// The vCPUs are stopped.
    Paused,
}

/// Command to the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VmCommand {
    Create,
    Boot,
    Shutdown,
    Delete,
    Reboot,
    Pause,
    Resume,
    PowerButton,
}

/// A step of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Keep the configuration.
    Describe,
    /// Build the VM and start its vCPUs.
    Start,
    /// Stop the vCPUs and tear the VM down.
    Stop,
    /// Drop the configuration.
    Forget,
    /// Pause the vCPUs.
    Halt,
    /// Resume the vCPUs.
    Continue,
    /// Press the guest's power button.
    PressPowerButton,
}

impl VmState {
    /// The next state and the steps to it, or why the command is not valid.
    pub(super) fn next(self, command: VmCommand) -> Result<(Self, &'static [Effect]), Failure> {
        use Effect::{Continue, Describe, Forget, Halt, PressPowerButton, Start, Stop};
        use VmState::{Absent, Created, Paused, Running};

        match (self, command) {
            (Absent, VmCommand::Create) => Ok((Created, &[Describe])),
            (Created | Running | Paused, VmCommand::Create)
            | (Running | Paused, VmCommand::Boot) => Err(Failure::AlreadyCreated),
            (Created, VmCommand::Boot) => Ok((Running, &[Start])),
            (Running | Paused, VmCommand::Shutdown) => Ok((Created, &[Stop])),
            (Absent, VmCommand::Delete) => Ok((Absent, &[])),
            (Created, VmCommand::Delete) => Ok((Absent, &[Forget])),
            (Running | Paused, VmCommand::Delete) => Ok((Absent, &[Stop, Forget])),
            (Running | Paused, VmCommand::Reboot) => Ok((Running, &[Stop, Start])),
            (Running, VmCommand::Pause) => Ok((Paused, &[Halt])),
            (Paused, VmCommand::Resume) => Ok((Running, &[Continue])),
            (Paused, VmCommand::Pause) => Err(Failure::State("Paused to Paused".to_owned())),
            (Running, VmCommand::Resume) => Err(Failure::State("Running to Running".to_owned())),
            (Running, VmCommand::PowerButton) => Ok((Running, &[PressPowerButton])),
            (Paused, VmCommand::PowerButton) => Ok((Paused, &[PressPowerButton])),
            (
                Absent,
                VmCommand::Boot
                | VmCommand::Shutdown
                | VmCommand::Reboot
                | VmCommand::Pause
                | VmCommand::Resume
                | VmCommand::PowerButton,
            ) => Err(Failure::NotCreated),
            (
                Created,
                VmCommand::Shutdown
                | VmCommand::Reboot
                | VmCommand::Pause
                | VmCommand::Resume
                | VmCommand::PowerButton,
            ) => Err(Failure::NotRunning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [VmState; 4] = [
        VmState::Absent,
        VmState::Created,
        VmState::Running,
        VmState::Paused,
    ];

    /// The outcome of a command in every state, in the order of [`STATES`], as text.
    fn outcomes(command: VmCommand) -> [String; 4] {
        STATES.map(|state| match state.next(command) {
            Ok((next, effects)) => format!("{next:?} {effects:?}"),
            Err(error) => error.to_string(),
        })
    }

    #[test]
    fn every_command_in_every_state() {
        const ABSENT: &str = "VM is not created";
        const THERE: &str = "VM is already created";
        const IDLE: &str = "VM is not running";
        for (command, expected) in [
            (
                VmCommand::Create,
                ["Created [Describe]", THERE, THERE, THERE],
            ),
            (VmCommand::Boot, [ABSENT, "Running [Start]", THERE, THERE]),
            (
                VmCommand::Shutdown,
                [ABSENT, IDLE, "Created [Stop]", "Created [Stop]"],
            ),
            (
                VmCommand::Delete,
                [
                    "Absent []",
                    "Absent [Forget]",
                    "Absent [Stop, Forget]",
                    "Absent [Stop, Forget]",
                ],
            ),
            (
                VmCommand::Reboot,
                [
                    ABSENT,
                    IDLE,
                    "Running [Stop, Start]",
                    "Running [Stop, Start]",
                ],
            ),
            (
                VmCommand::Pause,
                [
                    ABSENT,
                    IDLE,
                    "Paused [Halt]",
                    "invalid VM state transition: Paused to Paused",
                ],
            ),
            (
                VmCommand::Resume,
                [
                    ABSENT,
                    IDLE,
                    "invalid VM state transition: Running to Running",
                    "Running [Continue]",
                ],
            ),
            (
                VmCommand::PowerButton,
                [
                    ABSENT,
                    IDLE,
                    "Running [PressPowerButton]",
                    "Paused [PressPowerButton]",
                ],
            ),
        ] {
            assert_eq!(outcomes(command), expected, "{command:?}");
        }
    }
}
