//! The guest's first serial port (COM1) and its backend on the host.

mod backend;
mod input;
mod output;

use std::io;
use std::sync::{Arc, Mutex};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Gsi;
use crate::lock::lock;

pub(crate) use backend::SerialBackend;
pub(crate) use input::SerialInput;

use backend::SharedOutput;

/// First port of COM1.
pub(crate) const COM1_PORT: u16 = 0x3f8;
/// Last port of COM1.
pub(crate) const COM1_LAST_PORT: u16 = 0x3ff;
/// Interrupt of COM1.
pub(crate) const COM1_GSI: Gsi = Gsi::ioapic_pin(4);

/// Raises the port's interrupt.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Signals the input side that the guest has read all input.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if let Err(error) = self.0.write(1) {
            log::warn!("serial port: cannot signal that input was read: {error}");
        }
    }
}

/// A 16550 UART for the guest.
pub(crate) struct SerialPort {
    uart: Mutex<Serial<Interrupt, Drained, SharedOutput>>,
    interrupt: EventFd,
    drained: EventFd,
}

impl SerialPort {
    /// A port in its reset state that writes to `output`.
    pub(crate) fn new(output: SharedOutput) -> io::Result<Self> {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let drained = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let uart = Serial::with_events(
            Interrupt(interrupt.try_clone()?),
            Drained(drained.try_clone()?),
            output,
        );
        Ok(Self {
            uart: Mutex::new(uart),
            interrupt,
            drained,
        })
    }

    /// Written when the port raises its interrupt.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Written when the guest has read all input.
    fn drained(&self) -> &EventFd {
        &self.drained
    }

    /// Reads the register at `offset`. More than one byte is a string instruction, which reads the same register
    /// again.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        let mut uart = lock(&self.uart);
        for byte in data {
            *byte = uart.read(register(offset));
        }
    }

    /// Writes the register at `offset`. More than one byte is a string instruction, which writes the same register
    /// again.
    pub(crate) fn write(&self, offset: u16, data: &[u8]) {
        let mut uart = lock(&self.uart);
        for byte in data {
            if let Err(error) = uart.write(register(offset), *byte) {
                log::debug!("serial port: lost a byte of output: {error}");
            }
        }
    }

    /// How many bytes [`Self::receive`] accepts now.
    fn room(&self) -> usize {
        lock(&self.uart).fifo_capacity()
    }

    /// Passes input to the guest, at most [`Self::room`] bytes.
    fn receive(&self, input: &[u8]) {
        if let Err(error) = lock(&self.uart).enqueue_raw_bytes(input) {
            log::warn!("serial port: lost input: {error}");
        }
    }
}

/// Register number of an offset from the port's base: there are eight registers.
fn register(offset: u16) -> u8 {
    let [low, _] = offset.to_le_bytes();
    low & 0x7
}

/// A serial port of a VM, and its input if there is one.
pub(crate) struct SerialConnection {
    pub(crate) port: Arc<SerialPort>,
    pub(crate) input: Option<SerialInput>,
}

impl SerialConnection {
    /// A new port on `backend`; `None` if the port is off.
    pub(crate) fn open(backend: &SerialBackend) -> io::Result<Option<Self>> {
        let Some(output) = backend.output() else {
            return Ok(None);
        };
        let port = Arc::new(SerialPort::new(output)?);
        let input = backend
            .has_input()
            .then(|| SerialInput::new(Arc::clone(&port)));
        Ok(Some(Self { port, input }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use vmm_api::SerialConfig;

    #[test]
    fn output_reaches_the_file_and_survives_a_second_port() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let backend = SerialBackend::open(&SerialConfig::File(path.clone())).unwrap();

        let first = SerialConnection::open(&backend).unwrap().unwrap();
        first.port.write(0, b"one ");
        drop(first);
        let second = SerialConnection::open(&backend).unwrap().unwrap();
        second.port.write(0, b"two");

        assert_eq!(std::fs::read_to_string(path).unwrap(), "one two");
    }

    #[test]
    fn input_raises_the_interrupt_and_reading_it_drains() {
        let backend = SerialBackend::open(&SerialConfig::Null).unwrap();
        let port = SerialConnection::open(&backend).unwrap().unwrap().port;
        port.write(1, &[0x01]);

        port.receive(b"x");
        assert!(port.interrupt().read().is_ok());

        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(&data, b"x");
        assert!(port.drained().read().is_ok());
    }

    #[test]
    fn a_stalled_reader_does_not_block_a_vcpu_and_receives_later_output() {
        const PIPE_BYTES: usize = 64 << 10;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RWXU, 0).unwrap();
        let mut options = std::fs::File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut reader = options.open(&path).unwrap();
        let backend = SerialBackend::open(&SerialConfig::File(path)).unwrap();
        let port = SerialConnection::open(&backend).unwrap().unwrap().port;
        let vcpu = Arc::clone(&port);
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            vcpu.write(0, &vec![b'x'; 2 * PIPE_BYTES]);
            done.send(()).unwrap();
        });
        let waited = ended.recv_timeout(std::time::Duration::from_secs(20));
        assert_eq!(waited, Ok(()), "a vCPU waits for the reader");

        let mut bytes = vec![0; 4 * PIPE_BYTES];
        let kept = reader.read(&mut bytes).unwrap();
        assert!((PIPE_BYTES / 2..=PIPE_BYTES).contains(&kept), "{kept}");
        port.write(0, b"on");
        assert_eq!(reader.read(&mut bytes).unwrap(), 2);
        assert_eq!(&bytes[..2], b"on");
    }

    #[test]
    fn port_that_is_off_does_not_exist() {
        let backend = SerialBackend::open(&SerialConfig::Off).unwrap();
        assert!(SerialConnection::open(&backend).unwrap().is_none());
    }

    #[test]
    fn file_that_cannot_be_created_is_named() {
        let path = "/nonexistent/log".into();
        let error = SerialBackend::open(&SerialConfig::File(path))
            .err()
            .unwrap();
        assert!(error.to_string().contains("/nonexistent/log"));
    }
}
