//! A proxy in front of a VMM's API: it passes on the calls that it knows, and asks a [`Gate`] about those that bring devices.
//!
//! ```text
//! client ──HTTP──▶ hyper ──▶ Route ──▶ Gate, for calls about devices ──▶ a new request to the VMM, on a connection of its own
//!                            404, 400       409 and the reasons
//! ```
//! Nothing of the client's head reaches the VMM: verb and path come from the table of routes, the length from the body that was
//! read, the headers are always the same. So the VMM's parser cannot see another request than the one that was judged.
//! Descriptors go with the request that they came with, and end the client's connection: what comes behind them is not read.
//!
//! A gated call holds the turn until the VMM has answered it for good or has closed the connection, also when its client
//! has given up: what was decided about one call is true of the VM when the next one is decided about.

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

use super::answer::{Answers, BadRequest, Response, empty, json, raw_json};
use super::request::Asked;
use crate::client::Conversation;
use crate::{ClientError, Gate, Passage};
use routes::Route;

/// Calls that are with the VMM at once. cloud-hypervisor serves ten connections, and a gate needs some for itself.
const MAX_FORWARDED: usize = 6;
/// How long a call may wait for others.
const TURN_TIME: Duration = Duration::from_secs(30);
/// How long a gated call that the VMM does not answer keeps others waiting after its client was told.
const HOLD_TIME: Duration = Duration::from_secs(24 * 3600);

/// The proxy. Clones are the same.
#[derive(Clone)]
pub(super) struct Forward {
    vmm: Arc<PathBuf>,
    gate: Arc<dyn Gate>,
    /// Held by the gated call that is under way.
    turn: Arc<Mutex<()>>,
    room: Arc<Semaphore>,
    /// No call may take longer, whatever its route says.
    max_patience: Duration,
}

/// A call to be passed on.
struct Order {
    route: &'static Route,
    body: Bytes,
    descriptors: Vec<OwnedFd>,
}

impl Forward {
    pub(super) fn new(vmm: PathBuf, gate: Arc<dyn Gate>) -> Self {
        Self {
            vmm: Arc::new(vmm),
            gate,
            turn: Arc::default(),
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

    /// Has a call judged and passed on. Goes on when the client has gone.
    async fn order(&self, order: Order) -> Response {
        let busy = || {
            let why = "the VMM has not answered other calls yet (try again)".to_owned();
            told(StatusCode::SERVICE_UNAVAILABLE, vec![why])
        };
        let turn = match order.route.gated {
            None => None,
            Some(_) => match timeout(TURN_TIME, Arc::clone(&self.turn).lock_owned()).await {
                Ok(turn) => Some(turn),
                Err(_) => return busy(),
            },
        };
        let room = timeout(TURN_TIME, Arc::clone(&self.room).acquire_owned()).await;
        let Ok(Ok(room)) = room else {
            return busy();
        };
        let (tell, answer) = oneshot::channel();
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            this.carry(order, tell);
            drop((turn, room));
        });
        let panicked = |_| told(StatusCode::INTERNAL_SERVER_ERROR, Vec::new());
        answer.await.unwrap_or_else(panicked)
    }

    /// Judges a call, passes it on, and tells the answer. Returns when the VMM is done with it.
    fn carry(&self, order: Order, tell: oneshot::Sender<Response>) {
        // A client that has gone wants no answer.
        let tell = |response| drop(tell.send(response));
        let body = match self.judge(&order) {
            Ok(body) => body,
            Err((status, messages)) => return tell(told(status, messages)),
        };
        let route = order.route;
        let patience = route.patience.min(self.max_patience);
        let mut conversation = match Conversation::open(&self.vmm, route.call, patience) {
            Ok(conversation) => conversation,
            Err(error) => return tell(unanswered(&error)),
        };
        let line = format!("{} /api/v1/{} HTTP/1.1", route.method(), route.call);
        let body = (!body.is_empty()).then_some(&*body);
        if let Err(error) = conversation.ask(&line, body, &order.descriptors) {
            // An incomplete request does nothing.
            return tell(unanswered(&error));
        }
        let answer = conversation.whole_answer();
        let late = matches!(answer, Err(ClientError::Late { .. }));
        tell(answer.map_or_else(
            |error| unanswered(&error),
            |(status, body)| answered(status, body),
        ));
        if late && route.gated.is_some() {
            log::warn!(
                "{} is not answered: other calls about devices wait for that",
                route.call
            );
            conversation.await_end(HOLD_TIME);
        }
    }

    /// The body to pass on, or why the call is not passed on.
    fn judge(&self, order: &Order) -> Result<Bytes, (StatusCode, Vec<String>)> {
        let Some(call) = order.route.gated else {
            return Ok(order.body.clone());
        };
        let refused = |status, reasons: Vec<String>| {
            let mut messages = vec![call.attempt().to_owned()];
            messages.extend(reasons);
            (status, messages)
        };
        match self.gate.pass(call, &order.body, &order.descriptors) {
            Passage::Passes(body) => Ok(body.into()),
            Passage::Refused { reasons } => Err(refused(StatusCode::CONFLICT, reasons)),
            Passage::Malformed(why) => Err(refused(StatusCode::BAD_REQUEST, vec![why])),
            Passage::Failed { messages } => {
                Err(refused(StatusCode::INTERNAL_SERVER_ERROR, messages))
            }
        }
    }
}

impl Answers for Forward {
    async fn answer(&self, asked: Asked) -> Result<Response, BadRequest> {
        let descriptors = asked.riders.take();
        let call = asked.call()?;
        let Some(route) = Route::of(call) else {
            let why = format!(
                "{call} is no call that this proxy knows: what it does not know may bring devices (ask at the VMM's own socket)"
            );
            return Ok(told(StatusCode::NOT_FOUND, vec![why]));
        };
        asked.verb(&route.method())?;
        if route.method() == Method::GET && !asked.body.is_empty() {
            return Err(BadRequest::Form);
        }
        let last = !descriptors.is_empty();
        if last && !route.takes_descriptors {
            let why = format!("{call} takes no descriptors");
            return Ok(closing(told(StatusCode::BAD_REQUEST, vec![why])));
        }
        let order = Order {
            route,
            body: asked.body.clone(),
            descriptors,
        };
        let response = self.order(order).await;
        Ok(if last { closing(response) } else { response })
    }
}

/// The same answer, after which the connection ends.
fn closing(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

/// An answer of the proxy itself, in the words of cloud-hypervisor's errors.
fn told(status: StatusCode, messages: Vec<String>) -> Response {
    let mut all = vec!["Error from API".to_owned()];
    all.extend(messages);
    json(status, &all)
}

/// The VMM's answer.
fn answered(status: u16, body: Vec<u8>) -> Response {
    let mut response = match StatusCode::from_u16(status) {
        Ok(status) if body.is_empty() => empty(status),
        Ok(status) => raw_json(status, body),
        Err(_) => {
            let why = format!("the VMM's status is {status}");
            told(StatusCode::BAD_GATEWAY, vec![why])
        }
    };
    // It is another program's.
    response.headers_mut().remove(SERVER);
    response
}

/// What a client is told if the VMM did not answer.
fn unanswered(error: &ClientError) -> Response {
    let status = match error {
        ClientError::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| {
        error.source()
    });
    told(status, chain.map(ToString::to_string).collect())
}
