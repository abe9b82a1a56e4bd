//! What the kernel tells when a PCI function comes, goes or changes its driver: uevents, over netlink.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

/// The group to which the kernel itself sends; others are for what udev makes of it.
const KERNEL: u32 = 1;

/// Bytes for a message: more than the kernel makes of one (linux 7.2 include/linux/kobject.h: `UEVENT_BUFFER_SIZE`).
const LONGEST: usize = 8 << 10;

/// A socket on which the kernel tells.
pub(super) struct Uevents(OwnedFd);

impl Uevents {
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(netlink::KOBJECT_UEVENT),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Waits until the kernel tells something, at most so long; whether any of it was about PCI functions.
    pub(super) fn wait(&self, patience: Duration) -> io::Result<bool> {
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut fds, Some(&patience)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut news = false;
        let mut message = [0; LONGEST];
        loop {
            match recvfrom(&self.0, &mut message[..], RecvFlags::empty()) {
                Ok((length, _, Some(sender))) => {
                    // A process with the right to may send to the group as well.
                    let kernel = SocketAddrNetlink::try_from(sender).is_ok_and(|s| s.pid() == 0);
                    news |= kernel && message.get(..length).is_some_and(is_about_pci);
                }
                Ok((_, _, None)) | Err(Errno::INTR) => {}
                // More was told than there is room for: it may have been about anything.
                Err(Errno::NOBUFS) => news = true,
                Err(Errno::AGAIN) => return Ok(news),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a message tells that a PCI function came, went, or got or lost its driver: `action@path`, then `KEY=value`
/// each, with a NUL behind it (linux 7.2 lib/kobject_uevent.c: `kobject_uevent_env()`).
fn is_about_pci(message: &[u8]) -> bool {
    let mut parts = message.split(|byte| *byte == 0);
    let action = parts.next().unwrap_or_default();
    let action = action.split(|byte| *byte == b'@').next();
    let actions: [&[u8]; 4] = [b"add", b"remove", b"bind", b"unbind"];
    action.is_some_and(|action| actions.contains(&action))
        && parts.any(|part| part == b"SUBSYSTEM=pci")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comings_and_goings_of_pci_functions_are_news_and_nothing_else_is() {
        let message = |action: &str, subsystem: &str| {
            format!(
                "{action}@/devices/pci0000:00/0000:00:04.0\0ACTION={action}\0DEVPATH=/devices/pci0000:00/0000:00:04.0\0\
                 SUBSYSTEM={subsystem}\0PCI_SLOT_NAME=0000:00:04.0\0SEQNUM=7\0"
            )
        };
        for action in ["add", "remove", "bind", "unbind"] {
            assert!(is_about_pci(message(action, "pci").as_bytes()), "{action}");
            assert!(!is_about_pci(message(action, "pci_bus").as_bytes()));
            assert!(!is_about_pci(message(action, "block").as_bytes()));
        }
        assert!(!is_about_pci(message("change", "pci").as_bytes()));
        for odd in [
            &b""[..],
            b"\0",
            b"add",
            b"libudev\0\xfe\xed",
            b"@\0SUBSYSTEM=pci",
        ] {
            assert!(!is_about_pci(odd), "{odd:?}");
        }
    }

    #[test]
    fn nothing_is_heard_on_a_quiet_socket_for_as_long_as_one_waits() {
        // A sandbox may have no such sockets; the daemon then does without.
        if let Ok(uevents) = Uevents::open() {
            uevents.wait(Duration::ZERO).unwrap();
        }
    }
}
