//! Descriptors that arrive on a connection (unix(7): `SCM_RIGHTS`), kept until a request takes them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use crate::descriptors::MOST_DESCRIPTORS;

/// Largest number of descriptors of one connection that no request has taken.
const MOST: usize = 16;
/// Size of a read, in bytes.
const READ_BYTES: usize = 16 << 10;

/// Descriptors that have arrived. Clones share them; the last clone closes the rest.
#[derive(Clone, Default)]
pub(super) struct PassedFds(Arc<Mutex<Vec<OwnedFd>>>);

impl PassedFds {
    /// Takes all descriptors.
    pub(super) fn take(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *self.lock())
    }

    /// Takes all descriptors into a new object.
    pub(super) fn split_off(&self) -> Self {
        Self(Arc::new(Mutex::new(self.take())))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that collects the descriptors that arrive on it.
pub(super) struct FdStream {
    stream: UnixStream,
    fds: PassedFds,
}

impl FdStream {
    pub(super) fn new(stream: UnixStream, fds: PassedFds) -> Self {
        Self { stream, fds }
    }
}

impl AsyncRead for FdStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_BYTES];
        let wanted = into.remaining().min(READ_BYTES);
        let bytes = bytes.get_mut(..wanted).unwrap_or_default();
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let mut came = Vec::new();
            let read = || receive(&self.stream, bytes, &mut came);
            match self.stream.try_io(Interest::READABLE, read) {
                Ok(count) => {
                    let mut fds = self.fds.lock();
                    if fds.len().saturating_add(came.len()) > MOST {
                        return Poll::Ready(Err(io::Error::other("too many descriptors")));
                    }
                    fds.append(&mut came);
                    into.put_slice(bytes.get(..count).unwrap_or_default());
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Reads the bytes that are available: at least one, or none at the end of the stream. Adds the received descriptors to
/// `descriptors`.
pub(super) fn receive(
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
        return Err(io::Error::other("descriptors were truncated"));
    }
    Ok(message.bytes)
}
