//! Proxy in front of a VMM's API: forwards known calls, and asks a [`RequestFilter`] about those that add or remove
//! devices.
//!
//! ```text
//! client ──HTTP──▶ hyper ──▶ Route ──▶ RequestFilter (calls about devices) ──▶ new request to the VMM
//!                            404, 400       409 and the reasons
//! ```
//! The request to the VMM contains no byte of the client's head: method and path come from the table of routes, the
//! length from the received body, and the headers are constant. So the VMM's parser sees exactly the request that was
//! decided about. Descriptors are forwarded with their request and end the client's connection: data behind them is not
//! read.
//!
//! A filtered call holds the filter lock until the VMM has sent its final answer or closed the connection, even if the
//! client has gone. So the filter decides about each call with the effects of the previous one known.

mod routes;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{CONNECTION, HeaderValue, SERVER};
use hyper::{Method, StatusCode};
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::time::timeout;

use super::answer::{Service, empty, json, raw_json};
use super::request::{BadRequest, HttpRequest};
use super::stream::Response;
use crate::client::HttpExchange;
use crate::{ClientError, Decision, RequestFilter};
use routes::Route;

/// Largest number of calls at the VMM. cloud-hypervisor serves ten connections, and the filter needs some of them.
const MAX_FORWARDED: usize = 6;
/// Time that a call may wait for others.
const WAIT_TIME: Duration = Duration::from_secs(30);
/// Time that an unanswered filtered call keeps the filter lock after its client got an error.
const HOLD_TIME: Duration = Duration::from_secs(24 * 3600);

/// The proxy. Clones share it.
#[derive(Clone)]
pub(super) struct ApiProxy {
    vmm: Arc<PathBuf>,
    filter: Arc<dyn RequestFilter>,
    /// Held by the filtered call in progress.
    filter_lock: Arc<Mutex<()>>,
    room: Arc<Semaphore>,
    /// Upper bound of every route's timeout.
    max_patience: Duration,
}

/// A call to forward.
struct ForwardedCall {
    route: &'static Route,
    body: Bytes,
    descriptors: Vec<OwnedFd>,
}

impl ApiProxy {
    pub(super) fn new(vmm: PathBuf, filter: Arc<dyn RequestFilter>) -> Self {
        Self {
            vmm: Arc::new(vmm),
            filter,
            filter_lock: Arc::default(),
            room: Arc::new(Semaphore::new(MAX_FORWARDED)),
            max_patience: Duration::MAX,
        }
    }

    #[cfg(test)]
    pub(super) fn with_max_patience(self, max_patience: Duration) -> Self {
        Self {
            max_patience,
            ..self
        }
    }

    /// Decides about a call and forwards it. Continues if the client goes away.
    async fn forward(&self, call: ForwardedCall) -> Response {
        let busy = || {
            let why = "the VMM has not answered other calls yet (try again)".to_owned();
            error_response(StatusCode::SERVICE_UNAVAILABLE, vec![why])
        };
        let filter_lock = match call.route.filtered {
            None => None,
            Some(_) => match timeout(WAIT_TIME, Arc::clone(&self.filter_lock).lock_owned()).await {
                Ok(filter_lock) => Some(filter_lock),
                Err(_) => return busy(),
            },
        };
        let room = timeout(WAIT_TIME, Arc::clone(&self.room).acquire_owned()).await;
        let Ok(Ok(room)) = room else {
            return busy();
        };
        let (respond, answer) = oneshot::channel();
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            this.forward_blocking(call, respond);
            drop((filter_lock, room));
        });
        let panicked = |_| error_response(StatusCode::INTERNAL_SERVER_ERROR, Vec::new());
        answer.await.unwrap_or_else(panicked)
    }

    /// Decides about a call, forwards it and sends the answer to the client. Returns when the VMM has finished the
    /// call.
    fn forward_blocking(&self, call: ForwardedCall, respond: oneshot::Sender<Response>) {
        // The client may have gone.
        let respond = |response| drop(respond.send(response));
        let body = match self.decide(&call) {
            Ok(body) => body,
            Err((status, messages)) => return respond(error_response(status, messages)),
        };
        let route = call.route;
        let patience = route.patience.min(self.max_patience);
        let mut exchange = match HttpExchange::open(&self.vmm, route.call, patience) {
            Ok(exchange) => exchange,
            Err(error) => return respond(failure_response(&error)),
        };
        let line = format!("{} /api/v1/{} HTTP/1.1", route.method(), route.call);
        let body = (!body.is_empty()).then_some(&*body);
        if let Err(error) = exchange.send_request(&line, body, &call.descriptors) {
            // The VMM ignores an incomplete request.
            return respond(failure_response(&error));
        }
        let answer = exchange.whole_answer();
        let late = matches!(answer, Err(ClientError::Late { .. }));
        respond(answer.map_or_else(
            |error| failure_response(&error),
            |(status, body)| vmm_response(status, body),
        ));
        if late && route.filtered.is_some() {
            log::warn!(
                "no answer to {}: other calls about devices wait for it",
                route.call
            );
            exchange.await_end(HOLD_TIME);
        }
    }

    /// The body to forward, or the error for the client.
    fn decide(&self, forwarded: &ForwardedCall) -> Result<Bytes, (StatusCode, Vec<String>)> {
        let Some(call) = forwarded.route.filtered else {
            return Ok(forwarded.body.clone());
        };
        let refused = |status, reasons: Vec<String>| {
            let mut messages = vec![call.failed_action().to_owned()];
            messages.extend(reasons);
            (status, messages)
        };
        match self
            .filter
            .decide(call, &forwarded.body, &forwarded.descriptors)
        {
            Decision::Forward(body) => Ok(body.into()),
            Decision::Refused { reasons } => Err(refused(StatusCode::CONFLICT, reasons)),
            Decision::Malformed(why) => Err(refused(StatusCode::BAD_REQUEST, vec![why])),
            Decision::Failed { messages } => {
                Err(refused(StatusCode::INTERNAL_SERVER_ERROR, messages))
            }
        }
    }
}

impl Service for ApiProxy {
    async fn answer(&self, request: HttpRequest) -> Result<Response, BadRequest> {
        let descriptors = request.fds.take();
        let call = request.call()?;
        let Some(route) = Route::of(call) else {
            let why = format!(
                "this proxy does not know {call}: an unknown call may add devices (use the VMM's own socket)"
            );
            return Ok(error_response(StatusCode::NOT_FOUND, vec![why]));
        };
        request.expect_method(&route.method())?;
        if route.method() == Method::GET && !request.body.is_empty() {
            return Err(BadRequest::Form);
        }
        let last = !descriptors.is_empty();
        if last && !route.takes_descriptors {
            let why = format!("{call} takes no descriptors");
            return Ok(closing(error_response(StatusCode::BAD_REQUEST, vec![why])));
        }
        let forwarded = ForwardedCall {
            route,
            body: request.body.clone(),
            descriptors,
        };
        let response = self.forward(forwarded).await;
        Ok(if last { closing(response) } else { response })
    }
}

/// The response with a header that ends the connection.
fn closing(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

/// An error response of the proxy, in cloud-hypervisor's format.
fn error_response(status: StatusCode, messages: Vec<String>) -> Response {
    let mut all = vec!["Error from API".to_owned()];
    all.extend(messages);
    json(status, &all)
}

/// The VMM's response.
fn vmm_response(status: u16, body: Vec<u8>) -> Response {
    let mut response = match StatusCode::from_u16(status) {
        Ok(status) if body.is_empty() => empty(status),
        Ok(status) => raw_json(status, body),
        Err(_) => {
            let why = format!("the VMM's status is {status}");
            error_response(StatusCode::BAD_GATEWAY, vec![why])
        }
    };
    // The header names another program.
    response.headers_mut().remove(SERVER);
    response
}

/// The error response if the VMM did not answer.
fn failure_response(error: &ClientError) -> Response {
    let status = match error {
        ClientError::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| {
        error.source()
    });
    error_response(status, chain.map(ToString::to_string).collect())
}
