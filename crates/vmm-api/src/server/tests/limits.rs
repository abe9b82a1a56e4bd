use super::*;
use crate::descriptors::send;
use crate::puppet::Puppet;

#[test]
fn a_body_that_is_too_long_is_refused() {
    let puppet = Puppet::start();
    let mut stream = connect(&puppet.socket());
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 64];
    // Far more than a body may have; the connection ends before all is sent.
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
    let puppet = Puppet::start();
    let head = format!("GET /api/v1/{} HTTP/1.1\r\n\r\n", "x".repeat(40 << 10));
    let mut stream = connect(&puppet.socket());
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
    let puppet = Puppet::start();
    let headers = "X: y\r\n".repeat(200);
    let head = format!("GET /api/v1/vmm.ping HTTP/1.1\r\n{headers}\r\n");
    let answer = ask(&puppet.socket(), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_long() {
    let puppet = Puppet::start();
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{";
    let answer = ask(&puppet.socket(), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn a_call_that_gets_no_answer_holds_up_no_other() {
    let puppet = Puppet::start();
    let stalls = r#"{"path":"/sys/x","id":"stalls"}"#;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&puppet.socket());
        stream
            .write_all(&request("PUT", "vm.add-device", stalls))
            .unwrap();
        waiting.push(stream);
    }
    let answer = ask(&puppet.socket(), &request("GET", "vmm.ping", ""));
    assert_eq!(status(&answer), "HTTP/1.1 200 ");
}

/// What is answered to a device that comes as so many descriptors.
fn sent_with(descriptors: usize) -> String {
    let puppet = Puppet::start();
    let mut stream = connect(&puppet.socket());
    let files = (0..descriptors).map(|_| tempfile::tempfile().unwrap().into());
    let body = r#"{"id":"x"}"#;
    let request = request("PUT", "vm.add-device", body);
    send(&stream, &request, &files.collect::<Vec<_>>()).unwrap();
    let mut answer = Vec::new();
    // The rest of a request that is not read ends the connection early.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_device_is_one_descriptor() {
    assert_eq!(status(&sent_with(1)), "HTTP/1.1 200 ");
    let answer = sent_with(2);
    assert_eq!(status(&answer), "HTTP/1.1 400 ");
    assert!(body(&answer).contains("more came"), "{answer}");
}

#[test]
fn a_descriptor_is_of_the_request_that_it_rides_on() {
    let puppet = Puppet::start();
    let mut stream = connect(&puppet.socket());
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
    assert_eq!(written, 0, "the device got what had come before");
}

#[test]
fn more_descriptors_than_anybody_needs_end_the_connection() {
    assert_eq!(sent_with(100), "");
}
