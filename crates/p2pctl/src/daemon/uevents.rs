//! Kernel uevents over netlink: a PCI function appears, disappears or changes its driver.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

/// The multicast group of the kernel; the other group is for udev's processed events.
const KERNEL: u32 = 1;

/// Buffer size in bytes; larger than any uevent (linux 7.2 include/linux/kobject.h: `UEVENT_BUFFER_SIZE`).
const LONGEST: usize = 8 << 10;

/// Netlink socket for uevents.
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

    /// Waits for uevents for at most `patience`. Returns whether one of them was about a PCI function.
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
                    // Privileged processes can also send to the group.
                    let kernel = SocketAddrNetlink::try_from(sender).is_ok_and(|s| s.pid() == 0);
                    news |= kernel && message.get(..length).is_some_and(is_about_pci);
                }
                Ok((_, _, None)) | Err(Errno::INTR) => {}
                // Messages were lost; any of them may have been about a PCI function.
                Err(Errno::NOBUFS) => news = true,
                Err(Errno::AGAIN) => return Ok(news),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a message reports that a PCI function appeared, disappeared, or got or lost its driver. The format is
/// `action@path`, then `KEY=value` entries, each terminated by NUL (linux 7.2 lib/kobject_uevent.c:
/// `kobject_uevent_env()`).
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
        // A sandbox may not permit netlink sockets; the daemon then works without them.
        if let Ok(uevents) = Uevents::open() {
            uevents.wait(Duration::ZERO).unwrap();
        }
    }
}
