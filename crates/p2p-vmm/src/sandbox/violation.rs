//! The signal handler that reports a system call that a thread's filter does not permit.
#![allow(unsafe_code, reason = "a signal handler")]

use std::cell::Cell;
use std::io::{self, Write};

use libc::{c_int, c_void, siginfo_t};

use super::{Role, system_calls};

thread_local! {
    // Needs neither allocation nor a destructor, so a signal handler may read it.
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// Records the role of this thread.
pub(super) fn set_role(role: Role) {
    ROLE.set(Some(role));
}

/// Installs the handler, which reports the call and the thread before SIGSYS ends the process.
pub(super) fn watch() -> io::Result<()> {
    // SAFETY: all bytes zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = report;
    action.sa_sigaction = handler as usize;
    // SA_RESETHAND: the handler raises the signal again, which then has its default action.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
    // SAFETY: the action is complete, and its handler calls only async-signal-safe functions.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Formats without allocation, writes, and raises the signal again.
extern "C" fn report(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext of this thread.
    let registers = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let register = |number: c_int| {
        let index = usize::try_from(number).ok();
        index.and_then(|index| registers.get(index).copied())
    };
    // The registers at the call (linux kernel/seccomp.c: __seccomp_filter(), SECCOMP_RET_TRAP).
    let number = register(libc::REG_RAX).unwrap_or(-1);
    let second = register(libc::REG_RSI).unwrap_or(0);
    let role = ROLE.get().map_or("unknown", Role::name);
    let mut buffer = [0; 256];
    let mut rest = buffer.as_mut_slice();
    // A message that is too long is cut.
    let _ = match number {
        libc::SYS_ioctl => writeln!(
            rest,
            "error: the {role} thread made ioctl {second:#x}, which its filter does not permit: the VMM ends"
        ),
        _ => writeln!(
            rest,
            "error: the {role} thread made system call {number} ({}), which its filter does not permit: the VMM ends",
            system_calls::name_of(number).unwrap_or("see ausyscall"),
        ),
    };
    let left = rest.len();
    let text = buffer.get(..buffer.len() - left).unwrap_or_default();
    // SAFETY: write is async-signal-safe, and `text` lives through the call. An error cannot be reported.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: raise is async-signal-safe.
    unsafe { libc::raise(libc::SIGSYS) };
}
