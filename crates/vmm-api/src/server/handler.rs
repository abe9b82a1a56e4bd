//! An API whose calls a [`Handler`] answers, each call in a thread of its own.

use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::answer::{Service, empty, failure, json};
use super::request::{BadRequest, HttpRequest, parse};
use super::stream::{EVENTS, Response, Streams};
use crate::failure::Failure;

/// HTTP method of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpMethod {
    /// The call changes nothing and has no body.
    Get,
    /// The call changes something, or computes something from its body.
    Put,
}

/// A call of a client.
#[derive(Debug, Clone)]
pub struct ApiCall {
    /// Name of the call, without the trailing slash and what follows.
    pub call: &'static str,
    /// The path after the slash; empty if there is none.
    pub rest: String,
    body: Bytes,
}

impl ApiCall {
    /// Parses the body as JSON.
    ///
    /// # Errors
    /// [`Failure::Malformed`] with the position and the error.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        parse(&self.body).map_err(Failure::Malformed)
    }

    /// Checks that the body is absent or an empty object.
    ///
    /// # Errors
    /// [`Failure::Malformed`].
    pub fn nothing(&self) -> Result<(), Failure> {
        match self.body.is_empty() || self.json::<Map<String, Value>>()?.is_empty() {
            true => Ok(()),
            false => Err(Failure::Malformed("the call takes no body".to_owned())),
        }
    }
}

/// Service calls.
pub trait Handler: Send + Sync + 'static {
    /// All calls. A name that ends in a slash matches every path below it.
    fn calls(&self) -> &'static [(&'static str, HttpMethod)];

    /// Service a call. Several calls run at once. `None` is an answer without a body.
    ///
    /// # Errors
    /// [`Failure`]: the reason why the call was not carried out.
    fn answer(&self, api_call: &ApiCall) -> Result<Option<Value>, Failure>;
}

/// Serves the calls of a handler and the stream of events.
#[derive(Clone)]
pub(super) struct HandlerService {
    handler: Arc<dyn Handler>,
    streams: Streams,
}

impl HandlerService {
    pub(super) fn new(handler: Arc<dyn Handler>, streams: Streams) -> Self {
        Self { handler, streams }
    }
}

impl Service for HandlerService {
    async fn answer(&self, request: HttpRequest) -> Result<Response, BadRequest> {
        if request.call()? == EVENTS {
            return self.streams.answer(request);
        }
        let (call, api_call) = api_call(&*self.handler, request)?;
        let handler = Arc::clone(&self.handler);
        // The handler blocks while it reads and writes the host; other calls are served meanwhile.
        let answered = tokio::task::spawn_blocking(move || handler.answer(&api_call)).await;
        Ok(match answered {
            Ok(Ok(Some(value))) => json(StatusCode::OK, &value),
            Ok(Ok(None)) => empty(StatusCode::NO_CONTENT),
            Ok(Err(error)) => failure(&format!("{call} failed"), &error),
            Err(error) => {
                log::error!("API: {call}: {error}");
                failure(&format!("{call} failed"), &Failure::failed(&error))
            }
        })
    }
}

/// Finds the call that a request makes, and its name.
fn api_call(
    handler: &dyn Handler,
    request: HttpRequest,
) -> Result<(&'static str, ApiCall), BadRequest> {
    let path = request.call()?;
    let calls = handler.calls().iter();
    let mut calls = calls.filter_map(|(name, verb)| {
        let rest = path.strip_prefix(name)?;
        (rest.is_empty() != name.ends_with('/')).then_some((*name, *verb, rest))
    });
    let (call, verb, rest) = calls.next().ok_or(BadRequest::NoSuchCall)?;
    let method = match verb {
        HttpMethod::Get => Method::GET,
        HttpMethod::Put => Method::PUT,
    };
    request.expect_method(&method)?;
    if verb == HttpMethod::Get && !request.body.is_empty() {
        return Err(BadRequest::Form);
    }
    let api_call = ApiCall {
        call: call.trim_end_matches('/'),
        rest: rest.to_owned(),
        body: request.body,
    };
    Ok((call, api_call))
}
