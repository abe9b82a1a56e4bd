//! The API server: the calls that it carries out are those that another parser sees.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tempfile::TempDir;
use vmm_api::{ApiCall, ApiServer, EventLog, Failure, Handler, HttpMethod};

use super::ask;
use super::parser::{Parser, Request};

/// The calls of the test server.
const CALLS: &[(&str, HttpMethod)] = &[
    ("vmm.ping", HttpMethod::Get),
    ("vm.info", HttpMethod::Get),
    ("vm.create", HttpMethod::Put),
    ("vm.add-device", HttpMethod::Put),
    ("transactions/", HttpMethod::Get),
];

/// Records the calls.
#[derive(Default)]
struct Recorder(Mutex<Vec<Asked>>);

/// A recorded call.
#[derive(Debug, PartialEq)]
struct Asked {
    verb: &'static str,
    path: String,
    body: Option<Value>,
}

impl Recorder {
    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Recorder {
    fn calls(&self) -> &'static [(&'static str, HttpMethod)] {
        CALLS
    }

    fn answer(&self, inquiry: &ApiCall) -> Result<Option<Value>, Failure> {
        let path = match inquiry.rest.as_str() {
            "" => format!("/api/v1/{}", inquiry.call),
            rest => format!("/api/v1/{}/{rest}", inquiry.call),
        };
        let puts = matches!(inquiry.call, "vm.create" | "vm.add-device");
        let (verb, body) = match puts {
            false => ("GET", None),
            true => ("PUT", Some(inquiry.json()?)),
        };
        self.asked().push(Asked { verb, path, body });
        Ok(Some(json!({})))
    }
}

struct Stage {
    dir: TempDir,
    recorder: Arc<Recorder>,
    _server: ApiServer,
}

static STAGE: LazyLock<Mutex<Stage>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let recorder = Arc::new(Recorder::default());
    let server =
        ApiServer::with_handler(&dir.path().join("api"), &EventLog::new(), recorder.clone());
    Mutex::new(Stage {
        dir,
        recorder,
        _server: server.expect("a server"),
    })
});

/// Sends the input as the bytes of a client. Checks that every answer has a status, and that the first call carried out
/// is the first request that another parser finds, if it finds one.
pub(crate) fn api(input: &[u8]) {
    let text = String::from_utf8_lossy(input).to_ascii_lowercase();
    // A stream of events does not end.
    if text.contains("events") {
        return;
    }
    let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    stage.recorder.asked().clear();
    let answer = ask(&stage.dir.path().join("api"), input);
    let asked = std::mem::take(&mut *stage.recorder.asked());
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1."),
        "no status"
    );
    assert!(asked.is_empty() || !answer.is_empty(), "done, not answered");
    // The other parser does not support chunks.
    if text.contains("transfer-encoding") {
        return;
    }
    let others = Parser::new().requests(input);
    let first = others.iter().find_map(understood);
    if let (Some(asked), Some(first)) = (asked.first(), &first) {
        assert_eq!(asked, first, "the two parsers");
    }
}

/// The call that a request makes, in the form in which the handler records it.
fn understood(request: &Request) -> Option<Asked> {
    // The parser keeps the query in the target, after the question mark.
    let path = request.path.split(['?', '#']).next()?;
    let call = path.strip_prefix("/api/v1/")?;
    let (_, verb) = CALLS.iter().find(|(known, _)| {
        let rest = call.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() != known.ends_with('/'))
    })?;
    let (verb, body) = match verb {
        HttpMethod::Get => ("GET", None),
        HttpMethod::Put => ("PUT", Some(serde_json::from_slice(&request.body).ok()?)),
    };
    let fits = request.verb == verb && (body.is_some() || request.body.is_empty());
    fits.then(|| Asked {
        verb,
        path: path.to_owned(),
        body,
    })
}
