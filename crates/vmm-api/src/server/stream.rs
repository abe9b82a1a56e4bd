//! `GET /api/v1/events`: the events of the VMM, as server-sent events.
//!
//! Each event has its number as ID. A client that sends `Last-Event-ID` gets the events that it missed.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::OwnedNotified};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::connection::Held;
use super::request::{BadRequest, HttpRequest};
use crate::EventLog;
use crate::event::{Found, Line, Reader};

/// Largest number of clients that read events.
const MAX_STREAMS: usize = 32;
/// Interval of keep-alive comments on a quiet stream. Writing one also detects clients that have gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An answer: a complete body, or a stream of events.
pub(super) type Response = hyper::Response<Either<Full<Bytes>, EventBody>>;

/// The streams of events.
#[derive(Clone)]
pub(super) struct Streams {
    events: EventLog,
    more: Arc<Notify>,
    room: Arc<Semaphore>,
}

impl Streams {
    pub(super) fn new(events: EventLog) -> Self {
        let more = Arc::new(Notify::new());
        let waker = Arc::clone(&more);
        events.on_change(move || waker.notify_waiters());
        Self {
            events,
            more,
            room: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    fn open(&self, after: Option<u64>, held: Held) -> Option<EventBody> {
        let permit = Arc::clone(&self.room).try_acquire_owned().ok()?;
        let reader = match after {
            Some(seen) => self.events.reader_from(seen.saturating_add(1)),
            None => self.events.reader(),
        };
        let mut alive = interval(KEEP_ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(EventBody {
            changed: Box::pin(Arc::clone(&self.more).notified_owned()),
            streams: self.clone(),
            reader,
            alive,
            _held: held,
            _permit: permit,
        })
    }

    /// Service with the stream of events.
    pub(super) fn answer(&self, request: HttpRequest) -> Result<Response, BadRequest> {
        request.get()?;
        let seen = request.headers.get("last-event-id");
        let seen = seen.and_then(|id| id.to_str().ok()?.parse().ok());
        let body = self.open(seen, request.held).ok_or(BadRequest::TooMany)?;
        let mut response = Response::new(Either::Right(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(response)
    }
}

/// Name of the call.
pub(super) const EVENTS: &str = "events";

/// Body of a stream.
pub(super) struct EventBody {
    streams: Streams,
    reader: Reader,
    changed: Pin<Box<OwnedNotified>>,
    alive: Interval,
    /// Keeps the connection from being closed to make room for others.
    _held: Held,
    _permit: OwnedSemaphorePermit,
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            // Registers for notification before the read, so that no event is missed.
            this.changed.as_mut().enable();
            let text = match this.reader.poll() {
                Found::Event(number, line) => format!("id: {number}\n{}", fields(&line)),
                Found::Missed(count) => fields(&this.streams.events.missed(count)),
                Found::End => return Poll::Ready(None),
                Found::Nothing => {
                    if this.changed.as_mut().poll(context).is_ready() {
                        let next = Arc::clone(&this.streams.more).notified_owned();
                        this.changed.set(next);
                        continue;
                    }
                    ready!(this.alive.poll_tick(context));
                    ":\n\n".to_owned()
                }
            };
            return Poll::Ready(Some(Ok(Frame::data(text.into()))));
        }
    }
}

/// An event without its ID (WHATWG HTML §9.2.5). The JSON is on one line.
fn fields(line: &Line) -> String {
    format!("event: {}\ndata: {}\n\n", line.event, line.json)
}
