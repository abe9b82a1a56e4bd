//! The system calls of each kind of thread after its start.
//!
//! The lists were collected from the code and from test runs. Those of the C library and the standard library are for
//! Debian 12, static and dynamic, with the names that newer versions use.

use super::Role;

/// A system call: number, and name in libc.
pub(super) type SystemCall = (i64, &'static str);

macro_rules! calls {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

/// Calls of every thread: memory, waits, I/O on open descriptors, and exit.
const COMMON: &[SystemCall] = calls![
    SYS_brk SYS_munmap SYS_mremap SYS_madvise
    SYS_futex SYS_sched_yield SYS_restart_syscall
    SYS_clock_gettime SYS_clock_nanosleep SYS_nanosleep SYS_getrandom
    SYS_read SYS_write SYS_writev SYS_fcntl SYS_close
    SYS_epoll_wait SYS_epoll_pwait SYS_epoll_ctl SYS_poll SYS_ppoll
    SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack SYS_gettid SYS_getpid
    SYS_exit SYS_exit_group
];

/// Device registers and configuration space are accessed at offsets of a file; the kick signal is dequeued.
const VCPU: &[SystemCall] =
    calls![SYS_pread64 SYS_pwrite64 SYS_eventfd2 SYS_dup SYS_rt_sigtimedwait SYS_rt_sigpending];

/// Connections, and removal of the socket.
const API: &[SystemCall] = calls![
    SYS_accept4 SYS_recvfrom SYS_sendto SYS_recvmsg SYS_sendmsg SYS_getsockopt SYS_shutdown SYS_geteuid
    SYS_lstat SYS_newfstatat SYS_statx SYS_unlink SYS_unlinkat
];

/// An event file that has reached its maximum length is truncated.
const EVENTS: &[SystemCall] = calls![SYS_ftruncate SYS_lseek];

/// Files and directories are read.
const HOST: &[SystemCall] = calls![
    SYS_open SYS_openat SYS_stat SYS_lstat SYS_fstat SYS_newfstatat SYS_statx SYS_readlink SYS_readlinkat
    SYS_getdents64 SYS_getcwd SYS_lseek SYS_pread64
];

/// The main thread builds VMs and tears them down, reads the host, and starts vCPUs.
const MAIN: &[SystemCall] = calls![
    SYS_open SYS_openat SYS_stat SYS_lstat SYS_fstat SYS_newfstatat SYS_statx SYS_readlink SYS_readlinkat
    SYS_getdents64 SYS_getcwd SYS_lseek SYS_readv SYS_ftruncate SYS_memfd_create
    SYS_epoll_create1 SYS_epoll_pwait2
    SYS_set_robust_list SYS_rseq SYS_sched_getaffinity SYS_rt_sigaction
    SYS_prctl SYS_seccomp SYS_capget SYS_capset
    SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
];

/// Calls whose arguments are checked.
const CHECKED_BY_ARGUMENT: &[SystemCall] =
    calls![SYS_ioctl SYS_mmap SYS_mprotect SYS_tgkill SYS_clone];

/// Calls that a thread may make with any arguments.
pub(super) fn of(role: Role) -> impl Iterator<Item = SystemCall> {
    let own: &[&[SystemCall]] = match role {
        // A thread inherits the filter of the thread that starts it.
        Role::Main => &[MAIN, VCPU],
        Role::Vcpu => &[VCPU],
        Role::Api => &[API],
        Role::Events => &[EVENTS],
        Role::Log => &[],
        Role::Host => &[HOST],
    };
    COMMON.iter().chain(own.iter().copied().flatten()).copied()
}

/// The name of a call that some thread may make.
pub(super) fn name_of(number: i64) -> Option<&'static str> {
    let mut all = [COMMON, VCPU, API, MAIN, CHECKED_BY_ARGUMENT]
        .into_iter()
        .flatten();
    let found = all.find(|(known, _)| *known == number)?;
    found.1.strip_prefix("SYS_")
}
