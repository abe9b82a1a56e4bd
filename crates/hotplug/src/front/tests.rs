//! A front between a client and a VMM that notes what it gets.

use std::io::{Read, Seek, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::descriptors;

/// Far more than any step takes, so that a hang fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the VMM answers to everything.
const ANSWER: &[u8] =
    b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
    Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

/// Lets pass what says `"as-is"`, refuses what says `"no"`, and puts `{"new":1}` in the place of the rest.
struct Words(Mutex<Vec<GatedCall>>);

impl Gate for Words {
    fn pass(&self, call: GatedCall, body: &[u8]) -> Passage {
        self.0.lock().unwrap().push(call);
        match body.trim_ascii_end() {
            b"\"as-is\"" => Passage::AsIs,
            b"\"no\"" => Passage::Refused {
                reasons: vec!["two \"groups\"".to_owned()],
            },
            b"\"broken\"" => Passage::Failed {
                messages: vec!["sysfs is gone".to_owned()],
            },
            _ => Passage::Instead(b"{\"new\":1}".to_vec()),
        }
    }

    fn memory(&self, _: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        None
    }
}

/// What the VMM got in one read: bytes, and descriptors that rode on them.
type Heard = (Vec<u8>, Vec<OwnedFd>);

struct Stage {
    dir: TempDir,
    heard: Receiver<Heard>,
    gate: Arc<Words>,
    front: Option<Front>,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vmm = UnixListener::bind(dir.path().join("vmm")).unwrap();
        let (tell, heard) = mpsc::channel();
        thread::spawn(move || {
            for connection in vmm.incoming() {
                let tell = tell.clone();
                thread::spawn(move || serve(&connection.unwrap(), &tell));
            }
        });
        let gate = Arc::new(Words(Mutex::default()));
        let vmm = dir.path().join("vmm");
        let front = Front::start(&dir.path().join("front"), vmm, gate.clone()).unwrap();
        Self {
            dir,
            heard,
            gate,
            front: Some(front),
        }
    }

    fn connect(&self) -> UnixStream {
        connect(&self.dir.path().join("front"))
    }

    /// The next bytes that the VMM gets.
    fn heard(&self) -> Vec<u8> {
        self.heard.recv_timeout(PATIENCE).unwrap().0
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Answers each piece that comes, if it ends like a request.
fn serve(stream: &UnixStream, tell: &mpsc::Sender<Heard>) {
    loop {
        let mut bytes = vec![0; 1 << 16];
        let mut fds = Vec::new();
        let count = descriptors::receive(stream, &mut bytes, &mut fds).unwrap_or(0);
        if count == 0 {
            return;
        }
        bytes.truncate(count);
        let ends = bytes.ends_with(b"\r\n\r\n") || bytes.ends_with(b"}") || bytes.ends_with(b"\"");
        tell.send((bytes, fds)).unwrap();
        if ends {
            descriptors::send(stream, ANSWER, Vec::new()).unwrap();
        }
    }
}

fn request(call: &str, body: &str) -> Vec<u8> {
    format!(
        "PUT /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn answer(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; ANSWER.len()];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Status and messages of an answer that is no success.
fn refusal(stream: &mut UnixStream) -> (String, Vec<String>) {
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap();
        assert!(count > 0, "the connection was closed: {bytes:?}");
        bytes.extend_from_slice(&some[..count]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(messages) = serde_json::from_str(body)
        {
            return (head.lines().next().unwrap().to_owned(), messages);
        }
    }
}

#[test]
fn what_is_not_gated_or_not_changed_passes_byte_for_byte() {
    let stage = Stage::new();
    let mut client = stage.connect();
    for odd in [
        b"GET   /api/v1/vm.info HTTP/1.1\r\nhOST: x\r\nX-Odd:   y \r\n\r\n".to_vec(),
        request("vm.add-disk", "{\"p2p\":true}"),
        request("vm.create", "\"as-is\""),
        request("vm.remove-device", "\"as-is\""),
    ] {
        // More than one space is no request line; it is the VMM's business elsewhere.
        let odd = String::from_utf8(odd)
            .unwrap()
            .replacen("GET   ", "GET ", 1);
        client.write_all(odd.as_bytes()).unwrap();
        let mut heard = Vec::new();
        while heard.len() < odd.len() {
            heard.extend(stage.heard());
        }
        assert_eq!(String::from_utf8(heard).unwrap(), odd);
        assert_eq!(answer(&mut client), ANSWER);
    }
    assert_eq!(
        *stage.gate.0.lock().unwrap(),
        [GatedCall::Create, GatedCall::RemoveDevice]
    );
}

#[test]
fn a_gated_call_passes_with_what_the_gate_makes_of_it() {
    let stage = Stage::new();
    let mut client = stage.connect();
    client
        .write_all(&request("vm.add-device", "{\"p2p\":true}"))
        .unwrap();
    let expected = "PUT /api/v1/vm.add-device HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
                    Content-Length: 9\r\n\r\n{\"new\":1}";
    assert_eq!(String::from_utf8(stage.heard()).unwrap(), expected);
    assert_eq!(answer(&mut client), ANSWER);
}

#[test]
fn a_refusal_is_409_and_the_vmm_hears_nothing() {
    let stage = Stage::new();
    let mut client = stage.connect();
    client
        .write_all(&request("vm.add-device", "\"no\""))
        .unwrap();
    let (status, messages) = refusal(&mut client);
    assert_eq!(status, "HTTP/1.1 409 ");
    assert_eq!(
        messages,
        [
            "Error from API",
            "The device could not be added to the VM",
            "two \"groups\""
        ]
    );
    client
        .write_all(&request("vm.create", "\"broken\""))
        .unwrap();
    let (status, messages) = refusal(&mut client);
    assert_eq!(status, "HTTP/1.1 500 ");
    assert_eq!(
        messages[1..],
        ["The VM could not be created", "sysfs is gone"]
    );
    // The connection is as good as before, and nothing was heard in between.
    client.write_all(&request("vm.pause", "")).unwrap();
    assert_eq!(stage.heard(), request("vm.pause", ""));
}

#[test]
fn a_body_may_come_in_pieces() {
    let stage = Stage::new();
    let mut client = stage.connect();
    let whole = request("vm.add-device", "\"as-is\"");
    for piece in whole.chunks(7) {
        client.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stage.heard(), whole);
    assert_eq!(answer(&mut client), ANSWER);
}

#[test]
fn a_client_that_waits_to_be_told_is_told() {
    let stage = Stage::new();
    let mut client = stage.connect();
    let head =
        "PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    let mut told = [0; 25];
    client.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"\"no\"").unwrap();
    assert_eq!(refusal(&mut client).0, "HTTP/1.1 409 ");
}

#[test]
fn descriptors_arrive_with_their_request() {
    let stage = Stage::new();
    let client = stage.connect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"from the client").unwrap();
    for (call, body) in [("vm.add-net", "{}"), ("vm.add-device", "{}")] {
        let fd = file.as_fd().try_clone_to_owned().unwrap();
        descriptors::send(&client, &request(call, body), vec![fd]).unwrap();
        let (_, mut fds) = stage.heard.recv_timeout(PATIENCE).unwrap();
        assert_eq!(fds.len(), 1, "{call}");
        let mut got = std::fs::File::from(fds.remove(0));
        let mut text = String::new();
        got.rewind().unwrap();
        got.read_to_string(&mut text).unwrap();
        assert_eq!(text, "from the client");
        let mut bytes = vec![0; ANSWER.len()];
        (&client).read_exact(&mut bytes).unwrap();
    }
}

#[test]
fn a_refusal_does_not_overtake_an_answer() {
    let stage = Stage::new();
    let mut client = stage.connect();
    let both = [request("vm.pause", ""), request("vm.create", "\"no\"")].concat();
    client.write_all(&both).unwrap();
    assert_eq!(answer(&mut client), ANSWER);
    assert_eq!(refusal(&mut client).0, "HTTP/1.1 409 ");
}

#[test]
fn calls_of_two_clients_are_decided_about_one_after_the_other() {
    let stage = Stage::new();
    let (mut first, mut second) = (stage.connect(), stage.connect());
    // The VMM of this stage does not answer what ends in a space.
    first
        .write_all(&request("vm.create", "\"as-is\" "))
        .unwrap();
    stage.heard();
    second
        .write_all(&request("vm.add-device", "\"as-is\""))
        .unwrap();
    assert!(
        stage
            .heard
            .recv_timeout(Duration::from_millis(300))
            .is_err()
    );
    assert_eq!(*stage.gate.0.lock().unwrap(), [GatedCall::Create]);
    drop(first);
    stage.heard();
    assert_eq!(answer(&mut second), ANSWER);
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answer() {
    let stage = Stage::new();
    let mut client = stage.connect();
    client.write_all(&request("vm.pause", "")).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, ANSWER);
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let stage = Stage::new();
    let mut client = stage.connect();
    client
        .write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    assert_eq!(refusal(&mut client).0, "HTTP/1.1 400 ");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert!(stage.heard.try_recv().is_err());
}

#[test]
fn a_vmm_that_is_gone_is_a_closed_connection() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Words(Mutex::default()));
    let path = dir.path().join("front");
    let _front = Front::start(&path, dir.path().join("nobody"), gate).unwrap();
    let mut client = connect(&dir.path().join("front"));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn there_are_not_more_connections_than_there_may_be_and_a_place_is_given_back() {
    let stage = Stage::new();
    let mut all: Vec<_> = (0..MOST_CONNECTIONS).map(|_| stage.connect()).collect();
    for client in &mut all {
        client.write_all(&request("vm.pause", "")).unwrap();
        assert_eq!(answer(client), ANSWER);
    }
    assert_eq!(stage.connect().read(&mut [0]).unwrap(), 0, "one too many");
    all.clear();
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let mut client = stage.connect();
        let asked = client.write_all(&request("vm.pause", "")).is_ok();
        let mut first = [0];
        if asked && client.read(&mut first).is_ok_and(|count| count == 1) {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "no place was given back"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nobody_is_let_in_after_the_end() {
    let mut stage = Stage::new();
    let mut client = stage.connect();
    client.write_all(&request("vm.pause", "")).unwrap();
    assert_eq!(answer(&mut client), ANSWER);
    drop(stage.front.take());
    assert!(UnixStream::connect(stage.dir.path().join("front")).is_err());
    client.write_all(&request("vm.pause", "")).unwrap();
    assert_eq!(answer(&mut client), ANSWER, "who is inside is served");
}
