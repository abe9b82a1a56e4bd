//! Standard input as input of the serial port, on the main thread's event loop.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::terminal::Terminal;

use super::SerialPort;

/// Source of an event.
const STDIN: u32 = 0;
const DRAINED: u32 = 1;

/// Most bytes that are read from standard input at once.
const CHUNK_BYTES: usize = 64;

/// Whether the event loop waits for standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    Yes,
    /// The guest has not read its input yet.
    Paused,
    /// Standard input has ended.
    Ended,
}

/// Copies bytes from standard input to the port when the guest has room for them.
pub(crate) struct SerialInput {
    port: Arc<SerialPort>,
    listening: Listening,
}

impl SerialInput {
    pub(super) fn new(port: Arc<SerialPort>) -> Self {
        Self {
            port,
            listening: Listening::Paused,
        }
    }

    fn stdin_events() -> Events {
        Events::with_data(&io::stdin(), STDIN, EventSet::IN)
    }

    /// Waits for standard input. There is no input if epoll does not support it (a regular file, a closed
    /// descriptor).
    fn listen(&mut self, ops: &mut EventOps<'_>) {
        if self.listening != Listening::Paused {
            return;
        }
        match ops.add(Self::stdin_events()) {
            Ok(()) => self.listening = Listening::Yes,
            Err(error) => {
                log::info!("serial port: no input from standard input: {error}");
                self.listening = Listening::Ended;
            }
        }
    }

    fn stop(&mut self, ops: &mut EventOps<'_>, state: Listening) {
        if let Err(error) = ops.remove(Self::stdin_events()) {
            log::warn!("serial port: cannot stop listening to standard input: {error}");
        }
        self.listening = state;
    }

    fn transfer(&mut self, ops: &mut EventOps<'_>) {
        let mut chunk = [0; CHUNK_BYTES];
        let room = self.port.room().min(CHUNK_BYTES);
        if room == 0 {
            // The guest has not read its input yet; `drained` signals when it has.
            self.stop(ops, Listening::Paused);
            return;
        }
        let Some(space) = chunk.get_mut(..room) else {
            return;
        };
        match io::stdin().lock().read_raw(space) {
            Ok(0) => self.stop(ops, Listening::Ended),
            Ok(len) => self.port.receive(space.get(..len).unwrap_or_default()),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
            Err(error) => {
                log::warn!("serial port: cannot read standard input: {error}");
                self.stop(ops, Listening::Ended);
            }
        }
    }
}

impl MutEventSubscriber for SerialInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let drained = Events::with_data(self.port.drained(), DRAINED, EventSet::IN);
        if let Err(error) = ops.add(drained) {
            log::error!("serial port: no input: {error}");
            return;
        }
        self.listen(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            STDIN if events.event_set().contains(EventSet::IN) => self.transfer(ops),
            // Hang-up without data: there will be no more input.
            STDIN => self.stop(ops, Listening::Ended),
            DRAINED => {
                // The count of the eventfd does not matter.
                let _ = self.port.drained().read();
                self.listen(ops);
            }
            other => log::warn!("serial port: event of unknown source {other}"),
        }
    }
}
