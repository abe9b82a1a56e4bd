//! Starts QEMU so that it ends with this process, and passes a socket to it.

#![allow(
    unsafe_code,
    reason = "a child is prepared between fork and exec, which std only offers as unsafe"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

type Job = Box<dyn FnOnce() + Send>;

/// Starts `command`, which inherits `socket` under the same number.
///
/// The kernel kills the child when the *thread* that started it ends (prctl(2), `PR_SET_PDEATHSIG`). A lab may outlive
/// the thread that booted it, so one thread that lives as long as the process starts all children.
pub(super) fn spawn(mut command: Command, socket: OwnedFd) -> io::Result<Child> {
    let parent = rustix::process::getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the line above; then no signal would be sent.
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // Only in the child: programs that other threads start must not inherit the socket.
        Ok(fcntl_setfd(&socket, FdFlags::empty())?)
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes locks, so it may run between
    // fork and exec of a process with threads.
    unsafe { command.pre_exec(prepare) };
    let (sender, started) = mpsc::channel();
    run_on_keeper(Box::new(move || {
        // The caller waits below, so the receiver exists.
        drop(sender.send(command.spawn()));
    }))?;
    started
        .recv()
        .map_err(|_| io::Error::other("the thread that starts processes is gone"))?
}

fn run_on_keeper(job: Job) -> io::Result<()> {
    static KEEPER: Mutex<Option<Sender<Job>>> = Mutex::new(None);
    let mut keeper = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    let sender = match keeper.take() {
        Some(sender) => sender,
        None => {
            let (sender, jobs) = mpsc::channel::<Job>();
            thread::Builder::new()
                .name("lab keeper".into())
                .spawn(move || jobs.iter().for_each(|job| job()))?;
            sender
        }
    };
    let sent = sender.send(job);
    *keeper = Some(sender);
    sent.map_err(|_| io::Error::other("the thread that starts processes is gone"))
}
