//! The unix socket: for its owner only, from the moment it exists.

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

/// Why there is no socket to be asked at.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something answers there already.
    #[error("{path} is in use: another VMM answers there")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something that is not a socket.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen at {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Connections that may wait to be accepted; the kernel's limit may be lower.
const BACKLOG: i32 = 1024;

fn stream_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// A listening socket that is removed with this.
pub(crate) struct ApiSocket {
    listener: UnixListener,
    _file: SocketFile,
}

/// The socket's file: removed when dropped, unless somebody has put another there.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl ApiSocket {
    /// Makes the socket. A socket that nobody answers at is replaced.
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

    /// The socket, to accept connections with.
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

/// Takes away what an earlier VMM left behind.
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

/// Whether somebody listens at a socket, whether or not there is room in the backlog.
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
    // The file gets the mode of the socket (linux net/unix/af_unix.c: unix_bind_bsd()), so there is no moment in which
    // others could connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}
