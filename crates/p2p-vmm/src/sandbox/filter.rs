//! The seccomp filter of each kind of thread.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::{Role, ioctls, system_calls};

/// Flags of `clone` that make namespaces.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Action on a system call that the filter does not list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ViolationAction {
    /// The signal handler reports the call, and the process is killed.
    Trap,
    /// The kernel logs the call and permits it.
    Log,
}

/// The filter for threads of this kind.
pub(super) fn compile(role: Role, action: ViolationAction) -> Result<BpfProgram, Error> {
    let default_action = match action {
        ViolationAction::Trap => SeccompAction::Trap,
        ViolationAction::Log => SeccompAction::Log,
    };
    let filter = SeccompFilter::new(
        rules(role)?,
        default_action,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

/// A filter that is installed in addition, before the filter of the role. `clone3` fails with `ENOSYS`, so that the C
/// library starts threads by `clone`, whose flags a filter can check.
pub(super) fn without_clone3() -> Result<BpfProgram, Error> {
    let enosys = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, enosys, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// Permitted calls by number. A call without rules is permitted with any arguments.
fn rules(role: Role) -> Result<BTreeMap<i64, Vec<SeccompRule>>, Error> {
    let mut rules: BTreeMap<_, _> = system_calls::of(role)
        .map(|(number, _)| (number, Vec::new()))
        .collect();
    // Memory is never made executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = libc::PROT_EXEC.cast_unsigned().into();
        rules.insert(call, vec![when(2, Op::MaskedEq(executable), 0)?]);
    }
    if role == Role::Main {
        // Only threads may be started: they share memory, and get no namespaces of their own.
        let threads = libc::CLONE_THREAD | libc::CLONE_VM;
        let checked = (threads | NAMESPACES).cast_unsigned().into();
        let threads = threads.cast_unsigned().into();
        rules.insert(
            libc::SYS_clone,
            vec![when(0, Op::MaskedEq(checked), threads)?],
        );
        // The filter before this one makes it fail with `ENOSYS`.
        rules.insert(libc::SYS_clone3, Vec::new());
    }
    // Signals may be sent to threads of this process only.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![when(0, Op::Eq, own)?]);
    let ioctls = ioctls::of(role).map(|(number, _)| when(1, Op::Eq, number));
    let ioctls = ioctls.collect::<Result<Vec<_>, _>>()?;
    if !ioctls.is_empty() {
        rules.insert(libc::SYS_ioctl, ioctls);
    }
    Ok(rules)
}

/// Permits a call if an argument compares with `value`. The kernel compares 32 bits of these arguments.
fn when(argument: u8, op: Op, value: u64) -> Result<SeccompRule, Error> {
    let condition = SeccompCondition::new(argument, Len::Dword, op, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{ioctls, system_calls};
    use super::*;

    #[test]
    fn the_main_thread_may_do_what_a_vcpu_may() {
        // A thread inherits the filters of the thread that starts it.
        let calls = |role| system_calls::of(role).collect::<BTreeSet<_>>();
        assert!(calls(Role::Main).is_superset(&calls(Role::Vcpu)));
        let ioctls = |role| ioctls::of(role).collect::<BTreeSet<_>>();
        assert!(ioctls(Role::Main).is_superset(&ioctls(Role::Vcpu)));
    }

    #[test]
    fn threads_that_face_guests_and_clients_open_nothing_and_start_nothing() {
        for role in [Role::Vcpu, Role::Api, Role::Events, Role::Log] {
            let rules = rules(role).unwrap();
            for call in [
                libc::SYS_open,
                libc::SYS_openat,
                libc::SYS_openat2,
                libc::SYS_socket,
                libc::SYS_clone3,
                libc::SYS_prctl,
            ] {
                assert!(!rules.contains_key(&call), "{role:?} {call}");
            }
        }
        for role in Role::ALL {
            let rules = rules(role).unwrap();
            for call in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_ptrace,
                libc::SYS_mount,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
            ] {
                assert!(!rules.contains_key(&call), "{role:?} {call}");
            }
        }
    }

    #[test]
    fn no_ioctl_is_listed_twice() {
        let all: Vec<_> = ioctls::of(Role::Main).collect();
        let numbers: BTreeSet<_> = all.iter().map(|(number, _)| number).collect();
        assert_eq!(numbers.len(), all.len());
    }
}
