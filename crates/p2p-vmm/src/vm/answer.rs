//! API calls, executed by the controller of the VM.

use std::ops::ControlFlow;

use iommu_group::assignment::Refusal;
use p2p_vfio::DeviceSetError;
use vmm_api::{Call, Failure, VmmPing};

use super::controller::VmController;
use super::state::VmCommand;
use crate::devices::RemoveError;
use crate::error::VmmError;

impl VmController {
    /// Executes `call` and sends the response. Breaks if the call ends the VMM.
    pub(super) fn answer(&mut self, call: Call) -> ControlFlow<()> {
        match call {
            Call::Ping(reply) => reply.send(Ok(ping())),
            Call::ShutdownVmm(reply) => {
                reply.send(Ok(()));
                return ControlFlow::Break(());
            }
            Call::Create(config, reply) => reply.send(self.create(*config).map_err(failure)),
            Call::Boot(reply) => reply.send(self.execute(VmCommand::Boot).map_err(failure)),
            Call::Shutdown(reply) => reply.send(self.execute(VmCommand::Shutdown).map_err(failure)),
            Call::Delete(reply) => reply.send(self.execute(VmCommand::Delete).map_err(failure)),
            Call::Reboot(reply) => reply.send(self.execute(VmCommand::Reboot).map_err(failure)),
            Call::Pause(reply) => reply.send(self.execute(VmCommand::Pause).map_err(failure)),
            Call::Resume(reply) => reply.send(self.execute(VmCommand::Resume).map_err(failure)),
            Call::PowerButton(reply) => {
                reply.send(self.execute(VmCommand::PowerButton).map_err(failure));
            }
            Call::Info(reply) => reply.send(self.info()),
            Call::Counters(reply) => reply.send(self.counters()),
            Call::P2p(reply) => reply.send(self.p2p().map_err(failure)),
            Call::P2pWindows(request, reply) => {
                reply.send(self.set_windows(&request).map_err(failure));
            }
            Call::AddDevice(config, descriptor, reply) => {
                self.request_add(config, descriptor, reply);
            }
            Call::RemoveDevice(request, reply) => {
                reply.send(self.remove_device(&request).map_err(failure));
            }
        }
        ControlFlow::Continue(())
    }
}

fn ping() -> VmmPing {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    VmmPing {
        build_version: format!("p2p-vmm {VERSION}"),
        version: VERSION.to_owned(),
        pid: std::process::id().into(),
        features: vec!["kvm".to_owned(), "p2p".to_owned()],
    }
}

/// The response for an error.
pub(super) fn failure(error: VmmError) -> Failure {
    match error {
        VmmError::Call(failure) => failure,
        VmmError::Devices(DeviceSetError::Refused(refusal)) => refused(&refusal),
        VmmError::Layout(error) => Failure::Refused {
            reasons: vec![trimmed(&error.to_string())],
        },
        VmmError::Host(error) | VmmError::Devices(DeviceSetError::Host(error)) => {
            Failure::NoSuchDevice(error.to_string())
        }
        VmmError::Devices(DeviceSetError::Interface(error)) => Failure::failed(&error),
        VmmError::Devices(error) if error.is_refusal() => Failure::Refused {
            reasons: vec![trimmed(&format!("{error:#}"))],
        },
        VmmError::Descriptor(error) => Failure::NoSuchDevice(error.to_string()),
        VmmError::Remove(RemoveError::Unknown(id)) => Failure::UnknownDevice(id),
        VmmError::Remove(error @ RemoveError::Refused { .. }) => Failure::State(error.to_string()),
        error @ (VmmError::Devices(_) | VmmError::Option { .. } | VmmError::Failed(_)) => {
            Failure::failed(&error)
        }
    }
}

/// A refusal. The hints of a reason are lines of their own.
fn refused(refusal: &Refusal) -> Failure {
    let reasons = refusal.reasons.iter();
    Failure::Refused {
        reasons: reasons.map(|reason| trimmed(&reason.to_string())).collect(),
    }
}

/// A reason without the indentation of its hints.
fn trimmed(reason: &str) -> String {
    let lines: Vec<_> = reason.lines().map(str::trim).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use iommu_group::assignment::Reason;
    use iommu_group::{Sbdf, SysfsError};

    use super::*;

    fn sbdf() -> Sbdf {
        "0000:03:00.0".parse().unwrap()
    }

    #[test]
    fn a_refusal_keeps_its_type_to_the_exit_status_and_the_answer() {
        let error = VmmError::Devices(Refusal::from(Reason::Twice(sbdf())).into());
        assert!(error.is_refusal());
        let Failure::Refused { reasons } = failure(error) else {
            panic!("no refusal");
        };
        assert_eq!(
            reasons,
            ["0000:03:00.0 is given twice\nname every device once"]
        );
        let full = failure(VmmError::Devices(DeviceSetError::PeersElsewhere {
            sbdf: sbdf(),
        }));
        let Failure::Refused { reasons } = full else {
            panic!("no refusal");
        };
        assert!(
            reasons.concat().contains("\nunplug them first"),
            "{reasons:?}"
        );
    }

    #[test]
    fn a_failure_is_told_with_all_its_causes_and_is_no_refusal() {
        let cause = anyhow::anyhow!("the cause").context("the attempt");
        let error = VmmError::from(cause);
        assert!(!error.is_refusal() && error.hint().is_none());
        let Failure::Failed { messages } = failure(error) else {
            panic!("no failure");
        };
        assert_eq!(messages, ["the attempt", "the cause"]);
        let gone = SysfsError::NoGroup { sbdf: sbdf() };
        let error = VmmError::from(gone);
        assert!(error.is_refusal() && error.hint().is_some());
        assert!(matches!(failure(error), Failure::NoSuchDevice(_)));
    }
}
