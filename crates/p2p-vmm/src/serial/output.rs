//! Output to a reader that may stall: a pipe or a terminal without a reader must not block a vCPU.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Time to wait for a reader before it counts as stalled.
const TIMEOUT: Duration = Duration::from_millis(100);

/// An output that waits for its reader once, and then drops bytes until there is room again.
pub(super) struct LossyOutput<W> {
    output: W,
    /// Bytes dropped since the reader stalled; `None` if it does not stall.
    lost: Option<u64>,
}

impl<W: Write + AsFd> LossyOutput<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, lost: None }
    }

    /// Whether there is room within `timeout`.
    fn has_room(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.output, PollFlags::OUT)];
        Ok(poll(&mut fds, Some(&timeout))? > 0)
    }
}

impl<W: Write + AsFd> Write for LossyOutput<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let timeout = match self.lost {
            Some(_) => Duration::ZERO,
            None => TIMEOUT,
        };
        if !self.has_room(timeout)? {
            let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let lost = self.lost.unwrap_or_default();
            self.lost = Some(lost.saturating_add(more));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(lost) = self.lost.take() {
            log::warn!("serial port: the reader of the output stalled, {lost} bytes are lost");
        }
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
