//! A running command with its process group, captured output and deadline.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::protocol::{Exit, Invocation, MAX_CAPTURE_BYTES, Reply};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// How long to wait for output after the command itself has ended: a background process that it left behind may hold
/// the pipes open for ever, and on a busy machine the reader may have to wait for a processor.
const DRAIN: Duration = Duration::from_secs(5);

/// A started command.
pub(crate) struct Process {
    shared: Arc<Shared>,
}

struct Shared {
    group: Pid,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stdout: Capture,
    stderr: Capture,
    open_pipes: u8,
    timed_out: bool,
    ended: Option<Ended>,
}

#[derive(Clone, Copy)]
struct Ended {
    exit: Exit,
    at: Instant,
}

#[derive(Default)]
struct Capture {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Capture {
    fn push(&mut self, piece: &[u8]) {
        let room = MAX_CAPTURE_BYTES.saturating_sub(self.bytes.len());
        let kept = piece.get(..room).unwrap_or(piece);
        self.truncated |= kept.len() < piece.len();
        self.bytes.extend_from_slice(kept);
    }
}

/// Output of a command since the last report, and how it ended, if it has.
pub(crate) struct Report {
    exit: Option<Exit>,
    stdout: Capture,
    stderr: Capture,
}

impl Report {
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.is_some()
    }

    pub(crate) fn into_reply(self) -> (Reply, Vec<u8>) {
        let reply = Reply::Output {
            exit: self.exit,
            stdout_bytes: self.stdout.bytes.len(),
            truncated: self.stdout.truncated || self.stderr.truncated,
        };
        let mut payload = self.stdout.bytes;
        payload.extend_from_slice(&self.stderr.bytes);
        (reply, payload)
    }
}

impl Process {
    pub(crate) fn start(invocation: &Invocation, stdin: Vec<u8>) -> io::Result<Self> {
        let (program, arguments) = invocation
            .argv
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program named"))?;
        let timeout = Duration::from_millis(invocation.timeout_ms);
        let mut child = Command::new(program)
            .args(arguments)
            .envs(invocation.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let group = Pid::from_child(&child);
        let (in_pipe, out_pipe, err_pipe) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let shared = Arc::new(Shared {
            group,
            state: Mutex::new(State {
                open_pipes: 2,
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        if let Some(mut pipe) = in_pipe {
            // The command may end without reading its input; that is not an error.
            thread::spawn(move || drop(pipe.write_all(&stdin)));
        }
        if let Some(pipe) = out_pipe {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.capture(pipe, |state| &mut state.stdout));
        }
        if let Some(pipe) = err_pipe {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.capture(pipe, |state| &mut state.stderr));
        }
        let reaper = Arc::clone(&shared);
        thread::spawn(move || reaper.reap(child));
        let watchdog = Arc::clone(&shared);
        thread::spawn(move || watchdog.watch(timeout));
        Ok(Self { shared })
    }

    /// Waits for the command's end, which the deadline guarantees, and for the rest of the output.
    pub(crate) fn wait(&self) -> Report {
        let mut state = self.shared.lock();
        while state.ended.is_none() {
            state = self.shared.wait(state, None);
        }
        self.report(state)
    }

    /// Waits until there is something to report, at most for `limit`.
    pub(crate) fn poll(&self, limit: Duration) -> Report {
        let started = Instant::now();
        let mut state = self.shared.lock();
        while state.ended.is_none()
            && state.stdout.bytes.is_empty()
            && state.stderr.bytes.is_empty()
        {
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            state = self.shared.wait(state, Some(left));
        }
        self.report(state)
    }

    /// Signals the whole process group, unless the command has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.shared.signal(&self.shared.lock(), signal)
    }

    fn report<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Report {
        while let Some(ended) = state.ended {
            let left = DRAIN.saturating_sub(ended.at.elapsed());
            if state.open_pipes == 0 || left.is_zero() {
                break;
            }
            state = self.shared.wait(state, Some(left));
        }
        Report {
            exit: state.ended.map(|ended| ended.exit),
            stdout: std::mem::take(&mut state.stdout),
            stderr: std::mem::take(&mut state.stderr),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match limit {
            None => self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let (state, _) = self
                    .changed
                    .wait_timeout(state, limit)
                    .unwrap_or_else(PoisonError::into_inner);
                state
            }
        }
    }

    fn capture(&self, mut pipe: impl Read, stream: impl Fn(&mut State) -> &mut Capture) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(size) => {
                    stream(&mut self.lock()).push(buffer.get(..size).unwrap_or_default());
                    self.changed.notify_all();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut state = self.lock();
        state.open_pipes = state.open_pipes.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Waits for the command without reaping it, then reaps it under the lock, so that no signal is sent to a process
    /// ID that the kernel has reused.
    fn reap(&self, mut child: Child) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::Pid(self.group), options)
        {}
        let mut state = self.lock();
        let exit = match child.wait() {
            Ok(_) if state.timed_out => Exit::TimedOut,
            Ok(status) => exit_of(status),
            // Another thread reaped the child, so its status is unknown.
            Err(_) => Exit::Signal(0),
        };
        state.ended = Some(Ended {
            exit,
            at: Instant::now(),
        });
        self.changed.notify_all();
    }

    fn watch(&self, timeout: Duration) {
        let started = Instant::now();
        let mut state = self.lock();
        while state.ended.is_none() {
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                state.timed_out = true;
                // The group was alive under this lock. If the kernel refuses the signal, nothing else can be done.
                drop(self.signal(&state, Signal::KILL));
                return;
            }
            state = self.wait(state, Some(left));
        }
    }

    fn signal(&self, state: &State, signal: Signal) -> io::Result<()> {
        if state.ended.is_some() {
            return Ok(());
        }
        rustix::process::kill_process_group(self.group, signal)?;
        Ok(())
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, timeout_ms: u64, stdin: &[u8]) -> Process {
        let invocation = Invocation {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("LAB_WORD".into(), "word".into())],
            timeout_ms,
        };
        Process::start(&invocation, stdin.to_vec()).unwrap()
    }

    #[test]
    fn both_streams_the_input_and_the_code_are_told_apart() {
        let report = start("cat; echo $LAB_WORD >&2; exit 7", 10_000, b"in").wait();
        assert_eq!(report.exit, Some(Exit::Code(7)));
        assert_eq!(report.stdout.bytes, b"in");
        assert_eq!(report.stderr.bytes, b"word\n");
    }

    #[test]
    fn a_signal_is_not_an_exit_code() {
        let report = start("kill -9 $$", 10_000, b"").wait();
        assert_eq!(report.exit, Some(Exit::Signal(9)));
    }

    #[test]
    fn a_command_over_its_deadline_dies_with_its_children() {
        let started = Instant::now();
        let report = start("echo before; sleep 60 & sleep 60; echo after", 3000, b"").wait();
        assert_eq!(report.exit, Some(Exit::TimedOut));
        assert_eq!(report.stdout.bytes, b"before\n");
        assert!(started.elapsed() < Duration::from_secs(40));
    }

    #[test]
    fn a_child_left_behind_with_the_pipes_does_not_hold_the_report() {
        let started = Instant::now();
        let report = start("echo done; sleep 60 & exit 0", 60_000, b"").wait();
        assert_eq!(report.exit, Some(Exit::Code(0)));
        assert_eq!(report.stdout.bytes, b"done\n");
        assert!(started.elapsed() < Duration::from_secs(40));
    }

    #[test]
    fn a_poll_tells_what_is_new_and_a_signal_ends_it() {
        let process = start("echo one; exec sleep 60", 60_000, b"");
        let report = process.poll(Duration::from_secs(10));
        assert_eq!(report.stdout.bytes, b"one\n");
        assert_eq!(report.exit, None);
        let report = process.poll(Duration::from_millis(10));
        assert!(report.stdout.bytes.is_empty());
        process.signal(Signal::TERM).unwrap();
        let report = process.poll(Duration::from_secs(10));
        assert_eq!(report.exit, Some(Exit::Signal(15)));
    }

    #[test]
    fn output_over_the_limit_is_dropped_and_said_so() {
        let mut capture = Capture::default();
        capture.push(&vec![0; MAX_CAPTURE_BYTES - 1]);
        assert!(!capture.truncated);
        capture.push(b"xyz");
        assert_eq!(capture.bytes.len(), MAX_CAPTURE_BYTES);
        assert!(capture.truncated);
    }
}
