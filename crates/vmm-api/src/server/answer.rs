//! Service with cloud-hypervisor's status codes, headers and error bodies.

use http_body_util::{Either, Full};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, SERVER};
use serde::Serialize;

use super::request::{BadRequest, HttpRequest};
use super::stream::Response;
use crate::failure::Failure;

/// A service that answers requests.
pub(super) trait Service: Clone + Send + Sync + 'static {
    /// Service a request.
    fn answer(
        &self,
        request: HttpRequest,
    ) -> impl Future<Output = Result<Response, BadRequest>> + Send;
}

impl BadRequest {
    pub(super) fn into_response(self) -> Response {
        let (status, messages) = match self {
            Self::Form => (StatusCode::BAD_REQUEST, vec!["Bad Request".to_owned()]),
            Self::NoSuchCall => (StatusCode::NOT_FOUND, vec!["Not Found".to_owned()]),
            Self::TooLong => {
                let text = "Payload Too Large".to_owned();
                (StatusCode::PAYLOAD_TOO_LARGE, vec![text])
            }
            Self::TooSlow => {
                let text = "Request Timeout".to_owned();
                (StatusCode::REQUEST_TIMEOUT, vec![text])
            }
            Self::TooMany => {
                let text = "Too Many Requests".to_owned();
                (StatusCode::TOO_MANY_REQUESTS, vec![text])
            }
            Self::Json(why) => {
                let messages = vec!["Failed to deserialize JSON".to_owned(), why];
                (StatusCode::BAD_REQUEST, messages)
            }
        };
        json(status, &messages)
    }
}

/// The answer to a call that failed. `what` is a sentence about the failed action.
pub(super) fn failure(what: &str, failure: &Failure) -> Response {
    let mut messages = vec!["Error from API".to_owned()];
    if !matches!(failure, Failure::Busy | Failure::Ending) {
        messages.push(what.to_owned());
    }
    messages.extend(failure.messages());
    log::info!("API: {}", messages.join(": "));
    json(failure.status(), &messages)
}

/// The answer with `value` as its JSON body.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => with_body(status, body.into()),
        Err(error) => {
            log::error!("API: cannot serialize an answer: {error}");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// The answer with a body that is JSON already.
pub(super) fn raw_json(status: StatusCode, body: Vec<u8>) -> Response {
    with_body(status, body.into())
}

/// The answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    with_body(status, Bytes::new())
}

fn with_body(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SERVER, HeaderValue::from_static("p2p-vmm"));
    response
}
