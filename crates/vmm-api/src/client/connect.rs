//! Connecting to a unix socket by a deadline.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Connects to the unix socket at `path`. If the backlog of the listener is full, waits up to `patience` for room;
/// [`UnixStream::connect`] waits without a limit.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if the backlog stays full; otherwise as for [`UnixStream::connect`].
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + patience;
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // A connect() waits as long as a send does (linux net/unix/af_unix.c: unix_stream_connect()).
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_full_backlog_is_waited_for_and_no_longer_than_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        net::listen(&listener, 0).unwrap();
        let moment = Duration::from_millis(100);
        let first = connect(&path, moment).unwrap();
        let started = Instant::now();
        let error = connect(&path, moment).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((moment..moment * 20).contains(&started.elapsed()));
        let accept = std::thread::spawn(move || {
            std::thread::sleep(moment);
            listener.accept().unwrap();
            listener
        });
        connect(&path, moment * 100).unwrap();
        drop((first, accept.join().unwrap()));
        let error = connect(&path, moment).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
