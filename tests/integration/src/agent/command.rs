//! Commands that a test runs in the lab host.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Agent;
use crate::protocol::{Exit, Invocation, Reply, Request};

/// How long one poll waits in the lab host.
const POLL: Duration = Duration::from_millis(500);

/// How long a killed command may take to end: a VMM first frees all of its guest's memory.
const KILLED: Duration = Duration::from_secs(60);

/// signal(7).
const KILL: i32 = 9;

/// A command to run in the lab host.
#[must_use = "a command does nothing until it is run or spawned"]
pub struct Command<'lab> {
    agent: &'lab Agent,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    deadline: Duration,
}

/// Result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// How it ended.
    pub exit: Exit,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
    /// Part of the output exceeded the limit and was dropped.
    pub truncated: bool,
}

impl Output {
    /// The exit code, unless a signal or the deadline ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self.exit {
            Exit::Code(code) => Some(code),
            Exit::Signal(_) | Exit::TimedOut => None,
        }
    }

    /// Standard output of a command that must have succeeded.
    ///
    /// # Errors
    /// The command did not exit with code 0; the error shows its output.
    pub fn ok(self) -> Result<String> {
        if self.exit == Exit::Code(0) {
            return Ok(self.stdout);
        }
        bail!(
            "{:?} in the lab host: {}\n{}{}",
            self.argv,
            self.exit,
            self.stdout,
            self.stderr
        )
    }
}

impl<'lab> Command<'lab> {
    pub(crate) fn new<S: Into<String>>(
        agent: &'lab Agent,
        argv: impl IntoIterator<Item = S>,
        deadline: Duration,
    ) -> Self {
        Self {
            agent,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            stdin: Vec::new(),
            deadline,
        }
    }

    /// Sets a variable in the command's environment.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Standard input of the command; empty by default.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Time after which the command and its process group are killed.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs the command until it ends or its deadline passes.
    ///
    /// # Errors
    /// It cannot be started, or the lab host is gone. The failure of the command itself is not an error here.
    pub fn run(self) -> Result<Output> {
        let request = Request::Run(self.invocation());
        let answer = self.agent.ask(&request, &self.stdin, self.deadline)?;
        let piece = Piece::from_answer(answer)?;
        let output = Output {
            exit: piece
                .exit
                .context("the agent left out how a command ended")?,
            argv: self.argv,
            stdout: text(&piece.stdout),
            stderr: text(&piece.stderr),
            truncated: piece.truncated,
        };
        self.agent.transcript.add(&output);
        Ok(output)
    }

    /// Starts the command and leaves it running.
    ///
    /// # Errors
    /// It cannot be started, or the lab host is gone.
    pub fn spawn(self) -> Result<Running<'lab>> {
        let request = Request::Spawn(self.invocation());
        match self.agent.ask(&request, &self.stdin, Duration::ZERO)? {
            (Reply::Spawned { process }, _) => Ok(Running {
                agent: self.agent,
                process,
                argv: self.argv,
                deadline: Instant::now() + self.deadline,
                stdout: Vec::new(),
                stderr: Vec::new(),
                truncated: false,
                exit: None,
                reported: false,
            }),
            (other, _) => bail!("the agent answered {other:?} to a spawn"),
        }
    }

    fn invocation(&self) -> Invocation {
        Invocation {
            argv: self.argv.clone(),
            env: self.env.clone(),
            timeout_ms: u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// A command that runs in the background of the lab host. It is killed when this is dropped.
pub struct Running<'lab> {
    agent: &'lab Agent,
    process: u64,
    argv: Vec<String>,
    deadline: Instant,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    exit: Option<Exit>,
    reported: bool,
}

impl Running<'_> {
    /// Standard output up to now.
    ///
    /// # Errors
    /// The lab host is gone.
    pub fn stdout(&mut self) -> Result<String> {
        self.poll(Duration::ZERO)?;
        Ok(text(&self.stdout))
    }

    /// Waits until standard output contains `needle` and returns all of it up to now.
    ///
    /// # Errors
    /// The command ended or `limit` passed without it.
    pub fn wait_for(&mut self, needle: &str, limit: Duration) -> Result<String> {
        let started = Instant::now();
        loop {
            let seen = text(&self.stdout);
            if seen.contains(needle) {
                return Ok(seen);
            }
            if let Some(exit) = self.exit {
                let errors = text(&self.stderr);
                bail!(
                    "{:?}: {exit} before it said {needle:?}\n{seen}{errors}",
                    self.argv
                );
            }
            if started.elapsed() >= limit {
                let errors = text(&self.stderr);
                bail!(
                    "{:?} did not say {needle:?} within {} s\n{seen}{errors}",
                    self.argv,
                    limit.as_secs()
                );
            }
            self.poll(POLL)?;
        }
    }

    /// Waits for the command to end, which the deadline guarantees.
    ///
    /// # Errors
    /// The lab host is gone.
    pub fn wait(mut self) -> Result<Output> {
        // The agent kills the command at the deadline; if it has not ended this long afterwards, the agent is stuck.
        let limit = self.deadline + Duration::from_secs(60);
        while self.exit.is_none() {
            if Instant::now() > limit {
                bail!("{:?} runs on in the lab host past its deadline", self.argv);
            }
            self.poll(POLL)?;
        }
        let exit = self.exit.context("a command that ended has an exit")?;
        Ok(self.take_output(exit))
    }

    /// All output of the command, which counts as ended from now on.
    fn take_output(&mut self, exit: Exit) -> Output {
        self.exit = Some(exit);
        let output = Output {
            exit,
            argv: std::mem::take(&mut self.argv),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            truncated: self.truncated,
        };
        self.agent.transcript.add(&output);
        self.reported = true;
        output
    }

    /// Whether the command has ended.
    ///
    /// # Errors
    /// The lab host is gone.
    pub fn has_ended(&mut self) -> Result<bool> {
        self.poll(Duration::ZERO)?;
        Ok(self.exit.is_some())
    }

    /// Sends a signal to the command and its children.
    ///
    /// # Errors
    /// It has ended, the signal does not exist, or the lab host is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let process = self.process;
        self.agent
            .ask(&Request::Signal { process, signal }, &[], Duration::ZERO)
            .map(drop)
    }

    fn poll(&mut self, wait: Duration) -> Result<()> {
        if self.exit.is_some() {
            return Ok(());
        }
        let request = Request::Poll {
            process: self.process,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        let piece = Piece::from_answer(self.agent.ask(&request, &[], wait)?)?;
        self.stdout.extend_from_slice(&piece.stdout);
        self.stderr.extend_from_slice(&piece.stderr);
        self.truncated |= piece.truncated;
        self.exit = piece.exit;
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.reported {
            return;
        }
        // If the lab host is gone, nothing is left to kill. Otherwise, wait for the command to end, so that the agent
        // forgets it and the next command can use what it had open. A poll returns earlier if there is output.
        if self.exit.is_none() && self.signal(KILL).is_ok() {
            let limit = Instant::now() + KILLED;
            while self.exit.is_none() && Instant::now() < limit && self.poll(POLL).is_ok() {}
        }
        self.take_output(self.exit.unwrap_or(Exit::Signal(KILL)));
    }
}

/// The output part of an answer.
struct Piece {
    exit: Option<Exit>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

impl Piece {
    fn from_answer((reply, payload): (Reply, Vec<u8>)) -> Result<Self> {
        let Reply::Output {
            exit,
            stdout_bytes,
            truncated,
        } = reply
        else {
            bail!("the agent answered {reply:?} instead of output");
        };
        let (stdout, stderr) = payload
            .split_at_checked(stdout_bytes)
            .context("the agent sent less output than it said")?;
        Ok(Self {
            exit,
            stdout: stdout.to_vec(),
            stderr: stderr.to_vec(),
            truncated,
        })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
