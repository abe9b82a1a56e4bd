//! A VMM that gives the same answer to every call.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tempfile::TempDir;

/// Number of bytes of an answer that are written at once.
const PIECE: usize = 1 << 12;

pub(super) struct Server {
    dir: TempDir,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("vmm")).expect("a socket");
        let answer = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&answer);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                serve(stream, &answer);
            }
        });
        Self { dir, answer }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("vmm")
    }

    pub(super) fn answer_with(&self, bytes: &[u8]) {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        *answer = bytes.to_vec();
    }
}

/// Reads a request, which has no body, and answers. The client may have disconnected.
fn serve(mut stream: UnixStream, answer: &[u8]) {
    let mut request = Vec::new();
    let mut some = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut some) {
            Ok(count) if count > 0 => request.extend_from_slice(some.get(..count).unwrap_or(&[])),
            _ => return,
        }
    }
    for piece in answer.chunks(PIECE) {
        if stream.write_all(piece).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}
