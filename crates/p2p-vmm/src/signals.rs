//! Signals that end the VMM, as events of the main thread's event loop.
#![allow(unsafe_code, reason = "signalfd is a system call")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use libc::c_int;
use vmm_sys_util::signal::{block_signal, create_sigset};

use crate::exit::{ExitRequest, VmExit};

/// The signals that end the VMM.
const END_SIGNALS: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Signals cannot be received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignalError {
    #[error("cannot block signal {signal}: {reason}")]
    Block {
        signal: c_int,
        reason: vmm_sys_util::signal::Error,
    },
    #[error("cannot create a signal set")]
    Set(#[source] vmm_sys_util::errno::Error),
    #[error("cannot create a signalfd")]
    Open(#[source] io::Error),
}

/// The signals, as a file. They stay pending until a VM reads them.
pub(crate) struct EndSignals {
    file: Arc<File>,
}

impl EndSignals {
    /// Blocks the signals in this thread and in all threads that it starts, and opens the file that delivers them.
    pub(crate) fn open() -> Result<Self, SignalError> {
        for signal in END_SIGNALS {
            block_signal(signal).map_err(|reason| SignalError::Block { signal, reason })?;
        }
        let set = create_sigset(&END_SIGNALS).map_err(SignalError::Set)?;
        let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
        // SAFETY: `set` is an initialised signal set that lives through the call.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(SignalError::Open(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just created and has no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self {
            file: Arc::new(file),
        })
    }

    /// The subscriber that ends a VM on a signal.
    pub(crate) fn watcher(&self, exit: Arc<ExitRequest>) -> SignalWatcher {
        SignalWatcher {
            file: Arc::clone(&self.file),
            exit,
        }
    }
}

/// Turns a signal into the end of a VM.
pub(crate) struct SignalWatcher {
    file: Arc<File>,
    exit: Arc<ExitRequest>,
}

impl MutEventSubscriber for SignalWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&*self.file, EventSet::IN)) {
            self.exit
                .request(VmExit::Failed(format!("cannot wait for signals: {error}")));
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match (&*self.file).read(&mut info) {
            Ok(_) => {
                // The first field is the signal's number.
                let [a, b, c, d, ..] = info;
                let signal = c_int::from_le_bytes([a, b, c, d]);
                self.exit.request(VmExit::Signal(signal));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                let text = format!("cannot read a signal: {error}");
                self.exit.request(VmExit::Failed(text));
            }
        }
    }
}
