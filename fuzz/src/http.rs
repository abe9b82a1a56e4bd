//! Requests to the API server and to the proxy, compared with `dbs-uhttp`, whose parser is close to cloud-hypervisor's.

mod api;
mod parser;
mod proxy;

pub(crate) use api::api;
pub(crate) use proxy::{Judge, proxy};

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Timeout of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends `bytes` and returns everything that the server answers until it closes the connection.
fn ask(socket: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    // The server may close the connection before everything is written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let closed = std::io::ErrorKind::ConnectionReset;
        assert_eq!(error.kind(), closed, "no end after {PATIENCE:?}");
    }
    answer
}
