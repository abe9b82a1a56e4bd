//! Descriptors that ride on the bytes of a connection (unix(7): `SCM_RIGHTS`), kept until a request takes them.

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

/// Most descriptors of one connection that nobody has taken.
const MOST: usize = 16;
/// What is read at once, in bytes.
const READ_BYTES: usize = 16 << 10;

/// Descriptors that came so far. Clones are the same; what is left is closed with the last one.
#[derive(Clone, Default)]
pub(super) struct Riders(Arc<Mutex<Vec<OwnedFd>>>);

impl Riders {
    /// All that there are.
    pub(super) fn take(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *self.lock())
    }

    /// All that there are, by themselves.
    pub(super) fn split_off(&self) -> Self {
        Self(Arc::new(Mutex::new(self.take())))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that keeps what rides on it.
pub(super) struct Carriage {
    stream: UnixStream,
    riders: Riders,
}

impl Carriage {
    pub(super) fn new(stream: UnixStream, riders: Riders) -> Self {
        Self { stream, riders }
    }
}

impl AsyncRead for Carriage {
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
                    let mut riders = self.riders.lock();
                    if riders.len().saturating_add(came.len()) > MOST {
                        return Poll::Ready(Err(io::Error::other("too many descriptors")));
                    }
                    riders.append(&mut came);
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

impl AsyncWrite for Carriage {
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

/// Reads what there is, at least a byte unless the other side has nothing more to say; descriptors are added to
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
        return Err(io::Error::other("descriptors were lost on their way"));
    }
    Ok(message.bytes)
}
