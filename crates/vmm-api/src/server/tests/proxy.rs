//! A proxy between clients and a VMM that parses with `dbs-uhttp`, which is close to cloud-hypervisor's parser.

mod bypass;
mod mutations;
mod turns;

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use dbs_uhttp::HttpConnection;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::ApiServer;
use crate::server::fd_stream::receive;
use crate::server::proxy::ApiProxy;
use crate::{Decision, EventLog, FilteredCall, RequestFilter, descriptors};

/// The VMM's answer to every request.
const ANSWER: &[u8] =
    b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
    Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
/// A body that the filter refuses.
const NO: &str = "\"no\"";
/// A body that the VMM answers after a signal only.
const LATER: &str = "\"later\"";

/// Refuses `"no"`, and wraps other bodies in `{"new":…}`.
#[derive(Default)]
struct Words(Mutex<Vec<(FilteredCall, Decision)>>);

impl Words {
    fn filtered_calls(&self) -> Vec<FilteredCall> {
        let filtered_calls = self.0.lock().unwrap();
        filtered_calls.iter().map(|(call, _)| *call).collect()
    }
}

impl RequestFilter for Words {
    fn decide(&self, call: FilteredCall, body: &[u8], _: &[OwnedFd]) -> Decision {
        let passage = match body {
            b"\"no\"" => Decision::Refused {
                reasons: vec!["two \"groups\"".to_owned()],
            },
            b"\"broken\"" => Decision::Failed {
                messages: vec!["sysfs is gone".to_owned()],
            },
            _ => match serde_json::from_slice::<Value>(body) {
                Ok(body) => Decision::Forward(format!("{{\"new\":{body}}}").into_bytes()),
                Err(error) => Decision::Malformed(error.to_string()),
            },
        };
        self.0.lock().unwrap().push((call, passage.clone()));
        passage
    }

    fn memory(&self, _: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        None
    }
}

/// A request that the VMM received.
#[derive(Debug)]
struct Heard {
    /// All bytes of the connection so far.
    raw: Vec<u8>,
    /// Method, target and body, if the bytes are a request.
    request: Option<(String, String, Vec<u8>)>,
    descriptors: Vec<OwnedFd>,
}

struct Stage {
    dir: TempDir,
    heard: Receiver<Heard>,
    /// One message for each [`LATER`] to answer.
    answer: Sender<()>,
    filter: Arc<Words>,
    proxy: Option<ApiServer>,
}

impl Stage {
    fn new() -> Self {
        Self::with_max_patience(PATIENCE)
    }

    fn with_max_patience(max_patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("vmm")).unwrap();
        let (sender, heard) = mpsc::channel();
        let (answer, later) = mpsc::channel();
        let later = Arc::new(Mutex::new(later));
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (sender, later) = (sender.clone(), Arc::clone(&later));
                thread::spawn(move || serve(&connection.unwrap(), &sender, &later));
            }
        });
        let filter = Arc::new(Words::default());
        let forward = ApiProxy::new(dir.path().join("vmm"), filter.clone());
        let forward = forward.with_max_patience(max_patience);
        let path = dir.path().join("proxy");
        let proxy = ApiServer::serve(&path, forward, &EventLog::new(), || Ok(())).unwrap();
        Self {
            dir,
            heard,
            answer,
            filter,
            proxy: Some(proxy),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("proxy")
    }

    fn ask(&self, bytes: &[u8]) -> String {
        let mut client = connect(&self.path());
        client.write_all(bytes).unwrap();
        answer(&mut client)
    }

    fn heard(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    /// Method, target and body of the next request that the VMM gets.
    fn request(&self) -> (String, String, String) {
        let heard = self.heard();
        let (verb, target, body) = heard.request.expect("a request");
        (verb, target, String::from_utf8(body).unwrap())
    }

    fn assert_nothing_heard(&self) {
        let heard = self.heard.recv_timeout(Duration::from_millis(100));
        assert!(heard.is_err(), "{heard:?}");
    }
}

/// Parses and answers requests.
fn serve(stream: &UnixStream, sender: &Sender<Heard>, later: &Mutex<Receiver<()>>) {
    let (mut feed, fed) = UnixStream::pair().unwrap();
    fed.set_nonblocking(true).unwrap();
    let mut parser = HttpConnection::new(fed);
    let (mut raw, mut fds, mut whole) = (Vec::new(), Vec::new(), false);
    loop {
        let mut bytes = vec![0; 1 << 16];
        let count = receive(stream, &mut bytes, &mut fds).unwrap_or(0);
        if count == 0 {
            break;
        }
        raw.extend_from_slice(&bytes[..count]);
        feed.write_all(&bytes[..count]).unwrap();
        whole = false;
        while parser.try_read().is_ok() {}
        while let Some(request) = parser.pop_parsed_request() {
            let body = request.body.as_ref().map(|body| body.raw().to_vec());
            let body = body.unwrap_or_default();
            let unanswered = String::from_utf8_lossy(&body).contains(LATER);
            let verb = request.method().to_str().to_owned();
            let target = request.uri().get_abs_path().to_owned();
            let heard = Heard {
                raw: raw.clone(),
                request: Some((verb, target, body)),
                descriptors: std::mem::take(&mut fds),
            };
            whole = true;
            if sender.send(heard).is_err() || unanswered && later.lock().unwrap().recv().is_err() {
                return;
            }
            let _ = descriptors::send(stream, b"HTTP/1.1 100 \r\n\r\n", &[]);
            let _ = descriptors::send(stream, ANSWER, &[]);
        }
    }
    if !raw.is_empty() && !whole {
        let _ = sender.send(Heard {
            raw,
            request: None,
            descriptors: fds,
        });
    }
}

fn put(call: &str, body: &str) -> Vec<u8> {
    format!(
        "PUT /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The next answer.
fn answer(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8(bytes.clone()).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            return text;
        }
        bytes.push(byte[0]);
    }
}

fn messages(answer: &str) -> Vec<String> {
    serde_json::from_str(body(answer)).unwrap_or_default()
}

#[test]
fn an_unfiltered_call_is_forwarded_with_the_proxys_head() {
    let stage = Stage::new();
    let text = "PUT /api/v1/vm.add-disk HTTP/1.1\r\nhOST: x\r\nX-Odd:   y \r\ncontent-length: 12\r\n\r\n{\"p2p\":true}";
    let answer = stage.ask(text.as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 200 \r\n") && answer.ends_with("\r\n\r\n{}"),
        "{answer}"
    );
    let expected = "PUT /api/v1/vm.add-disk HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 12\r\n\
        Content-Type: application/json\r\n\r\n{\"p2p\":true}";
    assert_eq!(String::from_utf8(stage.heard().raw).unwrap(), expected);
    stage.ask(b"GET /api/v1/vm.info?x HTTP/1.1\r\n\r\n");
    let request = (
        "GET".to_owned(),
        "/api/v1/vm.info".to_owned(),
        String::new(),
    );
    assert_eq!(stage.request(), request);
    assert!(stage.filter.filtered_calls().is_empty());
}

#[test]
fn a_filtered_call_is_forwarded_with_the_filters_body() {
    let stage = Stage::new();
    for call in [
        "vm.create",
        "vm.add-device",
        "vm.remove-device",
        "vm.restore",
        "vm.receive-migration",
    ] {
        let answer = stage.ask(&put(call, "{}"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(stage.request().2, "{\"new\":{}}", "{call}");
    }
    assert_eq!(stage.filter.filtered_calls().len(), 5);
}

#[test]
fn a_refusal_is_409_and_does_not_reach_the_vmm() {
    let stage = Stage::new();
    let mut client = connect(&stage.path());
    for (sent, status, said) in [
        (NO, "HTTP/1.1 409 ", "two \"groups\""),
        ("\"broken\"", "HTTP/1.1 500 ", "sysfs is gone"),
        (
            "{",
            "HTTP/1.1 400 ",
            "EOF while parsing an object at line 1 column 1",
        ),
    ] {
        client.write_all(&put("vm.add-device", sent)).unwrap();
        let answer = answer(&mut client);
        assert!(answer.starts_with(status), "{answer}");
        let top = ["Error from API", "The device could not be added to the VM"];
        assert_eq!(messages(&answer), [&top[..], &[said]].concat());
    }
    // The connection is still usable, and the VMM got nothing in between.
    client.write_all(&put("vm.pause", "")).unwrap();
    answer(&mut client);
    assert_eq!(stage.request().1, "/api/v1/vm.pause");
}

#[test]
fn a_body_may_be_fragmented_or_chunked() {
    let stage = Stage::new();
    let mut client = connect(&stage.path());
    for piece in put("vm.add-device", "[1, 2]").chunks(7) {
        client.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    answer(&mut client);
    assert_eq!(stage.request().2, "{\"new\":[1,2]}");
    let chunks = "PUT /api/v1/vm.add-disk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    client.write_all(chunks.as_bytes()).unwrap();
    answer(&mut client);
    let heard = stage.heard();
    assert!(!String::from_utf8_lossy(&heard.raw).contains("chunked"));
    assert_eq!(heard.request.unwrap().2, b"{}");
}

#[test]
fn expect_100_continue_is_answered() {
    let stage = Stage::new();
    let mut client = connect(&stage.path());
    let head =
        "PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    assert_eq!(answer(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(NO.as_bytes()).unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 409 "));
}

#[test]
fn descriptors_are_forwarded_with_their_request_only() {
    let stage = Stage::new();
    let file = tempfile::tempfile().unwrap();
    let fds = [file.as_fd().try_clone_to_owned().unwrap()];
    for call in ["vm.add-net", "vm.add-device", "vm.restore"] {
        let mut client = connect(&stage.path());
        let both = [put(call, "{}"), put("vm.add-net", "{}")].concat();
        descriptors::send(&client, &both, &fds).unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).unwrap();
        assert_eq!(
            answers.matches("HTTP/1.1 200 ").count(),
            1,
            "{call}: {answers}"
        );
        assert_eq!(stage.heard().descriptors.len(), 1, "{call}");
    }
    for call in [
        "vm.create",
        "vm.pause",
        "vm.add-disk",
        "vm.receive-migration",
    ] {
        let mut client = connect(&stage.path());
        descriptors::send(&client, &put(call, "{}"), &fds).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("takes no descriptors"), "{answer}");
    }
    stage.assert_nothing_heard();
}

#[test]
fn a_missing_vmm_or_an_invalid_answer_is_a_bad_gateway() {
    let stage = Stage::new();
    std::fs::remove_file(stage.dir.path().join("vmm")).unwrap();
    let answer = stage.ask(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("cannot connect to"),
        "{answer}"
    );
}

#[test]
fn an_answer_that_is_too_long_is_refused() {
    let stage = Stage::new();
    let vmm = stage.dir.path().join("vmm");
    std::fs::remove_file(&vmm).unwrap();
    let listener = UnixListener::bind(&vmm).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 \r\nContent-Length: 16777216\r\n\r\n");
        thread::sleep(PATIENCE);
    });
    let answer = stage.ask(b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("too long"),
        "{answer}"
    );
}

#[test]
fn a_dropped_server_serves_no_request() {
    let mut stage = Stage::new();
    stage.ask(&put("vm.pause", ""));
    drop(stage.proxy.take());
    assert!(UnixStream::connect(stage.path()).is_err());
}
