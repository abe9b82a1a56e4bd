//! The API's unix socket. Only its owner can connect, from the moment it exists.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Error of the API's socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens at the path.
    #[error("{path} is in use: another process listens there")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The path exists and is not a socket.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be created.
    #[error("cannot listen at {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Length of the backlog; the kernel's limit may be lower.
const BACKLOG: i32 = 1024;

fn stream_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// A listening socket. Dropping it removes its file.
pub(crate) struct ApiSocket {
    listener: UnixListener,
    _file: SocketFile,
}

/// The socket's file. Dropping it removes the file, unless the file was replaced.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl ApiSocket {
    /// Creates the socket. A socket without a listener is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        make_room(path)?;
        let listener = open(path).map_err(failed)?;
        let identity = identity(path).map_err(failed)?;
        Ok(Self {
            listener,
            _file: SocketFile {
                path: path.to_owned(),
                identity,
            },
        })
    }

    /// The listener, to accept connections.
    pub(crate) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes the socket that an earlier VMM left.
fn make_room(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let path = path.to_owned();
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path });
    }
    match is_listening(&path) {
        Ok(true) => Err(SocketError::InUse { path }),
        Ok(false) => fs::remove_file(&path).map_err(|source| SocketError::Listen { path, source }),
        Err(source) => Err(SocketError::Listen { path, source }),
    }
}

/// Whether a process listens at a socket, even if its backlog is full.
fn is_listening(path: &Path) -> io::Result<bool> {
    let socket = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open(path: &Path) -> io::Result<UnixListener> {
    let socket = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    // The file gets the mode of the socket (linux net/unix/af_unix.c: unix_bind_bsd()), so other users can never
    // connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}
