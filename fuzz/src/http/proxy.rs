//! The API proxy in front of a VMM: the VMM receives exactly what the filter permitted.

use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;
use vmm_api::{ApiServer, Decision, FilteredCall, RequestFilter};

use super::ask;
use super::parser::{Parser, Request};

/// The VMM's answer to every request.
const ANSWER: &[u8] =
    b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
    Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
/// Calls that add or remove devices.
const GATED: [&str; 5] = [
    "vm.create",
    "vm.add-device",
    "vm.remove-device",
    "vm.restore",
    "vm.receive-migration",
];

/// A filter that refuses the text `"no"`, puts `{"new":…}` around other JSON, and records what it forwards.
#[derive(Default)]
pub(crate) struct Judge(Mutex<Vec<Vec<u8>>>);

impl Judge {
    fn passed(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RequestFilter for Judge {
    fn decide(&self, _: FilteredCall, body: &[u8], _: &[OwnedFd]) -> Decision {
        if body == b"\"no\"" {
            return Decision::Refused {
                reasons: vec!["no".to_owned()],
            };
        }
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => {
                let body = format!("{{\"new\":{value}}}").into_bytes();
                self.passed().push(body.clone());
                Decision::Forward(body)
            }
            Err(error) => Decision::Malformed(error.to_string()),
        }
    }

    fn memory(&self, _: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        None
    }
}

/// What the VMM received on one connection.
struct Heard {
    raw: Vec<u8>,
    requests: Vec<Request>,
}

struct Stage {
    dir: TempDir,
    heard: Receiver<Heard>,
    judge: Arc<Judge>,
    _proxy: ApiServer,
}

static STAGE: LazyLock<Mutex<Stage>> = LazyLock::new(|| Mutex::new(Stage::new()));

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let vmm = dir.path().join("vmm");
        let listener = UnixListener::bind(&vmm).expect("a socket");
        let (tell, heard) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &tell);
            }
        });
        let judge = Arc::new(Judge::default());
        let proxy = ApiServer::proxy(&dir.path().join("proxy"), vmm, judge.clone());
        Self {
            dir,
            heard,
            judge,
            _proxy: proxy.expect("a proxy"),
        }
    }
}

/// Answers the first request. The proxy opens a connection for each request and closes it.
fn serve(mut stream: UnixStream, tell: &Sender<Heard>) {
    let mut parser = Parser::new();
    let mut heard = Heard {
        raw: Vec::new(),
        requests: Vec::new(),
    };
    let mut bytes = vec![0; 1 << 16];
    while heard.requests.is_empty() {
        let count = stream.read(&mut bytes).unwrap_or(0);
        let some = bytes.get(..count).unwrap_or_default();
        if some.is_empty() {
            break;
        }
        heard.raw.extend_from_slice(some);
        heard.requests = parser.requests(some);
    }
    // Sent before the answer, so that it is available when the client has the answer.
    let _ = tell.send(heard);
    let _ = stream.write_all(ANSWER);
    let _ = stream.read(&mut bytes);
}

/// Sends the input as the bytes of a client. Checks that the VMM receives requests that it parses as the proxy meant
/// them: with heads that the proxy wrote and, in calls about devices, with the body that the filter forwarded.
pub(crate) fn proxy(input: &[u8]) {
    let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    stage.judge.passed().clear();
    while stage.heard.try_recv().is_ok() {}
    ask(&stage.dir.path().join("proxy"), input);
    let mut passed = std::mem::take(&mut *stage.judge.passed());
    for heard in stage.heard.try_iter() {
        let raw = String::from_utf8_lossy(&heard.raw).into_owned();
        let [request] = &heard.requests[..] else {
            panic!("not one request: {raw:?}");
        };
        let Request { verb, path, body } = request;
        let head = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\nContent-Type: application/json\r\n"),
        };
        let head =
            format!("{verb} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{head}\r\n");
        let expected = [head.as_bytes(), body].concat();
        assert_eq!(raw, String::from_utf8_lossy(&expected), "the proxy's head");
        let call = path.strip_prefix("/api/v1/").unwrap_or(path);
        if GATED.contains(&call) {
            assert!(!passed.is_empty(), "not judged: {raw:?}");
            assert_eq!(*body, passed.remove(0), "not what was judged");
        }
    }
    assert!(passed.is_empty(), "judged, and not passed on");
}
