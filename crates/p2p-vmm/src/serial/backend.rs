//! The host's end of the serial port. It stays across resets of the VM.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use vmm_sys_util::terminal::Terminal;

use super::output::LossyOutput;
use crate::lock::lock;
use vmm_api::SerialConfig;

/// The host's end of the serial port could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SerialError {
    #[error("cannot create {path} for the serial port's output")]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot use standard output for the serial port")]
    Stdout(#[source] io::Error),
    #[error("cannot switch the terminal to raw mode")]
    RawMode(#[source] vmm_sys_util::errno::Error),
}

/// Output that the ports of consecutive VMs share.
#[derive(Clone)]
pub(crate) struct SharedOutput(Arc<Mutex<dyn Write + Send>>);

impl SharedOutput {
    fn new(output: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(output)))
    }
}

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).flush()
    }
}

/// The host's end of the serial port.
pub(crate) struct SerialBackend {
    output: Option<SharedOutput>,
    terminal: Option<RawTerminal>,
}

impl SerialBackend {
    /// Opens the configured backend.
    pub(crate) fn open(config: &SerialConfig) -> Result<Self, SerialError> {
        let output = match config {
            SerialConfig::Tty => Some(SharedOutput::new(LossyOutput::new(stdout()?))),
            SerialConfig::File(path) => Some(SharedOutput::new(LossyOutput::new(create(path)?))),
            SerialConfig::Null => Some(SharedOutput::new(io::sink())),
            SerialConfig::Off => None,
        };
        let terminal = match config {
            SerialConfig::Tty => Some(RawTerminal::enter().map_err(SerialError::RawMode)?),
            SerialConfig::File(_) | SerialConfig::Null | SerialConfig::Off => None,
        };
        Ok(Self { output, terminal })
    }

    /// The output of a port; `None` if the port is off.
    pub(super) fn output(&self) -> Option<SharedOutput> {
        self.output.clone()
    }

    /// Whether standard input is the input of the port.
    pub(super) fn has_input(&self) -> bool {
        self.terminal.is_some()
    }
}

/// Standard output, unbuffered.
fn stdout() -> Result<File, SerialError> {
    let owned = io::stdout().as_fd().try_clone_to_owned();
    owned.map(File::from).map_err(SerialError::Stdout)
}

fn create(path: &Path) -> Result<File, SerialError> {
    File::create(path).map_err(|source| SerialError::Create {
        path: path.to_owned(),
        source,
    })
}

/// Standard input in raw mode, if it is a terminal; restored when dropped.
struct RawTerminal;

impl RawTerminal {
    fn enter() -> Result<Self, vmm_sys_util::errno::Error> {
        io::stdin().lock().set_raw_mode()?;
        Ok(Self)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = io::stdin().lock().set_canon_mode() {
            log::warn!("cannot restore the terminal: {error}");
        }
    }
}
