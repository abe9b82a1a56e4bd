//! Accepting connections, and HTTP on each of them within limits.

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

use super::answer::{Answers, BadRequest, Response};
use super::connection::{Connections, Entry, Held};
use super::request::{Asked, read};
use super::riders::{Carriage, Riders};
use crate::EventLog;
use crate::socket::ApiSocket;

/// How long the head of a request may take, and how long a connection may be without one.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// How long the end of the VMM waits for answers that are on their way.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How often to look whether all are answered.
const LOOK: Duration = Duration::from_millis(2);
/// How long to wait when no connection can be accepted, such as for lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is told.
pub(super) async fn serve(
    socket: ApiSocket,
    answers: impl Answers,
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
                Ok((stream, _)) => welcome(stream, &connections, &answers, &mut tasks),
                Err(error) => {
                    log::warn!("API: cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            while tasks.try_join_next().is_some() {}
            // A new connection is looked at before the next is accepted, which might close it.
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
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
}

/// Serves a connection, if its other end may ask at all.
fn welcome(
    stream: UnixStream,
    connections: &Connections,
    answers: &impl Answers,
    tasks: &mut JoinSet<()>,
) {
    match may_ask(&stream) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            log::warn!("API: cannot tell who connects: {error}");
            return;
        }
    }
    let Some(entry) = connections.enter() else {
        log::warn!("API: a connection was closed, as all others are busy");
        return;
    };
    let task = tasks.spawn(converse(stream, Arc::clone(&entry), answers.clone()));
    entry.opened(task);
}

/// Whether the process at the other end is root's or of this process's user.
fn may_ask(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    let allowed = peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw();
    if !allowed {
        let pid = peer.pid().unwrap_or(0);
        log::warn!(
            "API: process {pid} of user {} may not ask: only root and the user of this VMM may",
            peer.uid()
        );
    }
    Ok(allowed)
}

async fn converse(stream: UnixStream, entry: Arc<Entry>, answers: impl Answers) {
    let riders = Riders::default();
    let carriage = Carriage::new(stream, riders.clone());
    let service = service_fn(move |request| {
        answer(request, riders.clone(), Arc::clone(&entry), answers.clone())
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        // Who has nothing more to say may still listen.
        .half_close(true)
        // cloud-hypervisor's client looks for `Content-Length` in this spelling.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(carriage), service)
        .await;
    if let Err(error) = served {
        log::debug!("API: a connection ended early: {error}");
    }
}

async fn answer(
    request: Request<Incoming>,
    riders: Riders,
    entry: Arc<Entry>,
    answers: impl Answers,
) -> Result<Response, Infallible> {
    let answered = ask(request, &riders, &entry, &answers).await;
    let mut response = answered.unwrap_or_else(BadRequest::into_response);
    // cloud-hypervisor's client takes all that follows the version for the number of the status.
    let no_reason = ReasonPhrase::from_static(b"");
    response.extensions_mut().insert(no_reason);
    Ok(response)
}

async fn ask(
    request: Request<Incoming>,
    riders: &Riders,
    entry: &Arc<Entry>,
    answers: &impl Answers,
) -> Result<Response, BadRequest> {
    let (parts, body) = request.into_parts();
    let body = read(body).await;
    // What came up to the last byte of this request is of no other.
    let riders = riders.split_off();
    let body = body?;
    let held = Held(Arc::new(entry.begins()));
    let asked = Asked {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body,
        riders,
        held: held.clone(),
    };
    // Who answers lets go of the request, and of what came with it, before there is an answer.
    let answered = answers.answer(asked).await;
    drop(held);
    answered
}
