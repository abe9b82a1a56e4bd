//! An API of calls that are answered by whoever sits at the desk, each in a thread of its own.

use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::answer::{Answers, BadRequest, Response, empty, failure, json};
use super::request::{Asked, parse};
use super::stream::{EVENTS, Streams};
use crate::failure::Failure;

/// HTTP's verb of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// It changes nothing and has no body.
    Get,
    /// It asks for something to be done, or to be computed from its body.
    Put,
}

/// What a client asks.
#[derive(Debug, Clone)]
pub struct Inquiry {
    /// The call's name, or its beginning up to a slash.
    pub call: &'static str,
    /// What follows the slash in the path; empty if there is none.
    pub rest: String,
    body: Bytes,
}

impl Inquiry {
    /// The body as JSON of this type.
    ///
    /// # Errors
    /// [`Failure::Malformed`] says where something is wrong and what.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        parse(&self.body).map_err(Failure::Malformed)
    }

    /// The body must say nothing: there is none, or it is an empty object.
    ///
    /// # Errors
    /// [`Failure::Malformed`].
    pub fn nothing(&self) -> Result<(), Failure> {
        match self.body.is_empty() || self.json::<Map<String, Value>>()?.is_empty() {
            true => Ok(()),
            false => Err(Failure::Malformed("the call takes nothing".to_owned())),
        }
    }
}

/// Who answers.
pub trait Desk: Send + Sync + 'static {
    /// The calls that there are. One that ends in a slash takes whatever follows.
    fn calls(&self) -> &'static [(&'static str, Verb)];

    /// Answers one; several come at once. Without a value the answer has no body.
    ///
    /// # Errors
    /// [`Failure`] says why it was not done.
    fn answer(&self, inquiry: &Inquiry) -> Result<Option<Value>, Failure>;
}

/// The calls of a desk, and the stream of events.
#[derive(Clone)]
pub(super) struct AtDesk {
    desk: Arc<dyn Desk>,
    streams: Streams,
}

impl AtDesk {
    pub(super) fn new(desk: Arc<dyn Desk>, streams: Streams) -> Self {
        Self { desk, streams }
    }
}

impl Answers for AtDesk {
    async fn answer(&self, asked: Asked) -> Result<Response, BadRequest> {
        if asked.call()? == EVENTS {
            return self.streams.answer(asked);
        }
        let (call, inquiry) = inquiry(&*self.desk, asked)?;
        let desk = Arc::clone(&self.desk);
        // The host is read and written for as long as that takes; others are served meanwhile.
        let answered = tokio::task::spawn_blocking(move || desk.answer(&inquiry)).await;
        Ok(match answered {
            Ok(Ok(Some(value))) => json(StatusCode::OK, &value),
            Ok(Ok(None)) => empty(StatusCode::NO_CONTENT),
            Ok(Err(error)) => failure(&format!("{call} was not done"), &error),
            Err(error) => {
                log::error!("API: {call}: {error}");
                failure(&format!("{call} was not done"), &Failure::failed(&error))
            }
        })
    }
}

/// What a desk with these calls is asked, and by which of their names.
fn inquiry(desk: &dyn Desk, asked: Asked) -> Result<(&'static str, Inquiry), BadRequest> {
    let path = asked.call()?;
    let calls = desk.calls().iter();
    let mut calls = calls.filter_map(|(name, verb)| {
        let rest = path.strip_prefix(name)?;
        (rest.is_empty() != name.ends_with('/')).then_some((*name, *verb, rest))
    });
    let (call, verb, rest) = calls.next().ok_or(BadRequest::NoSuchCall)?;
    let method = match verb {
        Verb::Get => Method::GET,
        Verb::Put => Method::PUT,
    };
    asked.verb(&method)?;
    if verb == Verb::Get && !asked.body.is_empty() {
        return Err(BadRequest::Form);
    }
    let inquiry = Inquiry {
        call: call.trim_end_matches('/'),
        rest: rest.to_owned(),
        body: asked.body,
    };
    Ok((call, inquiry))
}
