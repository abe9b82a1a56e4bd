//! Bytes on unix sockets, with the descriptors that ride on them (unix(7): `SCM_RIGHTS`).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Most descriptors on one message (linux include/net/scm.h: `SCM_MAX_FD`).
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// Writes as much as there is room for; descriptors ride on the first byte.
pub(crate) fn send(
    stream: impl AsFd,
    bytes: &[u8],
    descriptors: &[OwnedFd],
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let riders: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !riders.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&riders)) {
        return Err(Errno::TOOMANYREFS);
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(&stream, &[IoSlice::new(bytes)], &mut control, flags)
}
