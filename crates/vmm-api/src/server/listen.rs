//! Accepts connections and serves HTTP on each of them, within limits.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::answer::Service;
use super::connection::{Connections, Entry, Held};
use super::fd_stream::{FdStream, PassedFds};
use super::request::{BadRequest, HttpRequest, read};
use super::stream::Response;
use crate::EventLog;
use crate::socket::ApiSocket;

/// Time limit for the head of a request, and for an idle connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Largest number of headers in a request.
const MAX_HEADERS: usize = 64;
/// Time that the end of the server waits for open answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Interval at which the end of the server checks for open answers.
const POLL: Duration = Duration::from_millis(2);
/// Pause after accept() has failed, for example for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is notified.
pub(super) async fn serve(
    socket: ApiSocket,
    answers: impl Service,
    events: EventLog,
    stop: Arc<Notify>,
) {
    let connections = Connections::default();
    let mut tasks = JoinSet::new();
    let accept = async {
        let listener = match socket.listener().and_then(UnixListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                log::error!("API: cannot accept connections: {error}");
                return std::future::pending().await;
            }
        };
        loop {
            match listener.accept().await {
                Ok((stream, _)) => start_connection(stream, &connections, &answers, &mut tasks),
                Err(error) => {
                    log::warn!("API: cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            while tasks.try_join_next().is_some() {}
            // The task of the new connection runs before the next accept, which might close the connection.
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = stop.notified() => {}
        () = accept => {}
    }
    events.close();
    let answered = async {
        while connections.busy() > 0 {
            tokio::time::sleep(POLL).await;
        }
    };
    let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
}

/// Serves a connection if the client's user has access.
fn start_connection(
    stream: UnixStream,
    connections: &Connections,
    answers: &impl Service,
    tasks: &mut JoinSet<()>,
) {
    match has_access(&stream) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            log::warn!("API: cannot read the credentials of a client: {error}");
            return;
        }
    }
    let Some(entry) = connections.enter() else {
        log::warn!("API: a new connection was closed: all connections are busy");
        return;
    };
    let task = tasks.spawn(serve_connection(
        stream,
        Arc::clone(&entry),
        answers.clone(),
    ));
    entry.opened(task);
}

/// Whether the client runs as root or as this process's user.
fn has_access(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    let allowed = peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw();
    if !allowed {
        let pid = peer.pid().unwrap_or(0);
        log::warn!(
            "API: process {pid} of user {} is refused: only root and the user of this VMM have access",
            peer.uid()
        );
    }
    Ok(allowed)
}

async fn serve_connection(stream: UnixStream, entry: Arc<Entry>, answers: impl Service) {
    let fds = PassedFds::default();
    let stream = FdStream::new(stream, fds.clone());
    let service = service_fn(move |request| {
        answer(request, fds.clone(), Arc::clone(&entry), answers.clone())
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        // A client may close its sending side and still read the answer.
        .half_close(true)
        // cloud-hypervisor's client looks for `Content-Length` in this spelling.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        log::debug!("API: a connection ended early: {error}");
    }
}

async fn answer(
    request: Request<Incoming>,
    fds: PassedFds,
    entry: Arc<Entry>,
    answers: impl Service,
) -> Result<Response, Infallible> {
    let answered = serve_request(request, &fds, &entry, &answers).await;
    let mut response = answered.unwrap_or_else(BadRequest::into_response);
    // cloud-hypervisor's client parses everything after the version as the status number.
    let no_reason = ReasonPhrase::from_static(b"");
    response.extensions_mut().insert(no_reason);
    Ok(response)
}

async fn serve_request(
    request: Request<Incoming>,
    fds: &PassedFds,
    entry: &Arc<Entry>,
    answers: &impl Service,
) -> Result<Response, BadRequest> {
    let (parts, body) = request.into_parts();
    let body = read(body).await;
    // Descriptors that arrived up to the last byte of this request belong to it.
    let fds = fds.split_off();
    let body = body?;
    let held = Held(Arc::new(entry.begins()));
    let request = HttpRequest {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body,
        fds,
        held: held.clone(),
    };
    // The service drops the request and its descriptors before the answer is sent.
    let answered = answers.answer(request).await;
    drop(held);
    answered
}
