//! System call filter: calls that this program does not need fail with `EPERM`.
//!
//! All other calls are permitted. The list has calls that start programs and processes, inspect other processes, or
//! change the machine beyond the purposes of the remaining capabilities.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Denied for all arguments.
const DENIED: [i64; 60] = [
    // Programs, processes, and access to other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_uselib,
    // Namespaces and file systems.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    // The kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_personality,
    libc::SYS__sysctl,
    libc::SYS_vhangup,
    // Names, clocks and keys.
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Flags of `clone` that make namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The filters, to be installed in this order.
pub(super) fn programs(families: &[libc::c_int]) -> Result<[BpfProgram; 3], Error> {
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([
        without_x32(),
        // A filter cannot read its flags, which are in memory. The C library falls back to clone.
        denying(clone3, libc::ENOSYS)?,
        denying(rules(families)?, libc::EPERM)?,
    ])
}

fn denying(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, Error> {
    let denied = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

fn rules(families: &[libc::c_int]) -> Result<BTreeMap<i64, Vec<SeccompRule>>, Error> {
    let mut rules: BTreeMap<_, _> = DENIED.map(|call| (call, Vec::new())).into();
    // Deny new processes, and threads with their own namespaces.
    let thread = libc::CLONE_THREAD.cast_unsigned().into();
    let mut clone = vec![when(&[(0, Op::MaskedEq(thread), 0)])?];
    for flag in NAMESPACES {
        let flag = flag.cast_unsigned().into();
        clone.push(when(&[(0, Op::MaskedEq(flag), flag)])?);
    }
    rules.insert(libc::SYS_clone, clone);
    let others = families.iter().map(|family| {
        let family = family.cast_unsigned().into();
        (0, Op::Ne, family)
    });
    let others: Vec<_> = others.collect();
    let socket = match others.is_empty() {
        true => Vec::new(),
        false => vec![when(&others)?],
    };
    rules.insert(libc::SYS_socket, socket);
    Ok(rules)
}

/// A rule for all of these conditions. The kernel uses the lower 32 bits of the arguments.
fn when(conditions: &[(u8, Op, u64)]) -> Result<SeccompRule, Error> {
    let conditions = conditions.iter().cloned();
    let conditions = conditions
        .map(|(argument, op, value)| SeccompCondition::new(argument, Len::Dword, op, value))
        .collect::<Result<_, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

/// The x32 ABI has the same calls with other numbers (linux arch/x86/include/uapi/asm/unistd.h: `__X32_SYSCALL_BIT`).
fn without_x32() -> BpfProgram {
    /// Load the number of the call; jump if it is not less; return (linux include/uapi/linux/bpf_common.h).
    const LOAD: u16 = 0x20;
    const JUMP_IF_NOT_LESS: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const X32: u32 = 0x4000_0000;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(LOAD, 0, 0, 0),
        step(JUMP_IF_NOT_LESS, 0, 1, X32),
        step(RETURN, 0, 0, ERRNO | libc::EPERM.cast_unsigned()),
        step(RETURN, 0, 0, ALLOW),
    ]
}
