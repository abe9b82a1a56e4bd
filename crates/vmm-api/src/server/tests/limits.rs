use super::*;
use crate::descriptors::send;
use crate::fake_vmm::FakeVmm;

#[test]
fn a_body_that_is_too_long_is_refused() {
    let fake_vmm = FakeVmm::start();
    let mut stream = connect(&fake_vmm.socket());
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 64];
    // Far more than the limit; the connection ends before all is sent.
    let part = [b' '; 64 << 10];
    let sent = (0..1500)
        .take_while(|_| stream.write_all(&part).is_ok())
        .count();
    assert!(sent < 1500, "all of the body was taken");
    let count = stream.read(&mut answer).unwrap_or(0);
    assert!(
        answer[..count].is_empty() || answer.starts_with(b"HTTP/1.1 413 "),
        "{answer:?}"
    );
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let fake_vmm = FakeVmm::start();
    let head = format!("GET /api/v1/{} HTTP/1.1\r\n\r\n", "x".repeat(40 << 10));
    let mut stream = connect(&fake_vmm.socket());
    let _ = stream.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
}

#[test]
fn too_many_headers_are_refused() {
    let fake_vmm = FakeVmm::start();
    let headers = "X: y\r\n".repeat(200);
    let head = format!("GET /api/v1/vmm.ping HTTP/1.1\r\n{headers}\r\n");
    let answer = ask(&fake_vmm.socket(), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn a_body_that_does_not_arrive_times_out() {
    let fake_vmm = FakeVmm::start();
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{";
    let answer = ask(&fake_vmm.socket(), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn an_unanswered_call_does_not_block_others() {
    let fake_vmm = FakeVmm::start();
    let stalls = r#"{"path":"/sys/x","id":"stalls"}"#;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&fake_vmm.socket());
        stream
            .write_all(&request("PUT", "vm.add-device", stalls))
            .unwrap();
        waiting.push(stream);
    }
    let answer = ask(&fake_vmm.socket(), &request("GET", "vmm.ping", ""));
    assert_eq!(status(&answer), "HTTP/1.1 200 ");
}

/// The answer to a call that adds a device with this number of descriptors.
fn sent_with(descriptors: usize) -> String {
    let fake_vmm = FakeVmm::start();
    let mut stream = connect(&fake_vmm.socket());
    let files = (0..descriptors).map(|_| tempfile::tempfile().unwrap().into());
    let body = r#"{"id":"x"}"#;
    let request = request("PUT", "vm.add-device", body);
    send(&stream, &request, &files.collect::<Vec<_>>()).unwrap();
    let mut answer = Vec::new();
    // The server closes the connection early if it does not read the rest of a request.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_device_has_at_most_one_descriptor() {
    assert_eq!(status(&sent_with(1)), "HTTP/1.1 200 ");
    let answer = sent_with(2);
    assert_eq!(status(&answer), "HTTP/1.1 400 ");
    assert!(
        body(&answer).contains("more than one descriptor"),
        "{answer}"
    );
}

#[test]
fn a_descriptor_belongs_to_the_request_that_carries_it() {
    let fake_vmm = FakeVmm::start();
    let mut stream = connect(&fake_vmm.socket());
    let file = tempfile::tempfile().unwrap();
    let other = file.try_clone().unwrap().into();
    let ping = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: x\r\n\r\n";
    send(&stream, ping, &[other]).unwrap();
    let mut answer = [0; 4096];
    assert_ne!(stream.read(&mut answer).unwrap(), 0);
    let add = request("PUT", "vm.add-device", r#"{"id":"x","path":"/x"}"#);
    stream.write_all(&add).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    let written = file.metadata().unwrap().len();
    assert_eq!(
        written, 0,
        "the device got a descriptor of the earlier request"
    );
}

#[test]
fn too_many_descriptors_end_the_connection() {
    assert_eq!(sent_with(100), "");
}
