//! Sending bytes and descriptors on a unix socket (unix(7): `SCM_RIGHTS`).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Largest number of descriptors on one message (linux include/net/scm.h: `SCM_MAX_FD`).
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// Sends as many bytes as there is room for. The descriptors go with the first byte.
pub(crate) fn send(
    stream: impl AsFd,
    bytes: &[u8],
    descriptors: &[OwnedFd],
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(&stream, &[IoSlice::new(bytes)], &mut control, flags)
}
