//! Bytes on unix sockets, with the descriptors that ride on them (unix(7): `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors on one message (linux include/net/scm.h: `SCM_MAX_FD`).
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// Reads what there is, at least a byte unless the other side has nothing more to say; descriptors are added to
/// `descriptors`.
pub(crate) fn receive(
    stream: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors were lost on their way"));
    }
    Ok(message.bytes)
}

/// Writes all of it; descriptors ride on the first byte.
pub(crate) fn send(stream: impl AsFd, bytes: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut rest = bytes;
    let mut riders = fds.as_slice();
    while !rest.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !riders.is_empty() && !control.push(SendAncillaryMessage::ScmRights(riders)) {
            return Err(io::Error::other(
                "more descriptors than one message can have",
            ));
        }
        let flags = SendFlags::NOSIGNAL;
        match sendmsg(&stream, &[IoSlice::new(rest)], &mut control, flags) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                riders = &[];
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
