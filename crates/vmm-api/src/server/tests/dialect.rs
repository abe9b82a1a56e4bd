use super::*;
use crate::fake_vmm::{FakeVmm, REASON};
use crate::openapi;

/// Status line and body of the answer.
fn response(fake_vmm: &FakeVmm, verb: &str, call: &str, sent: &str) -> (String, String) {
    let answer = ask(&fake_vmm.socket(), &request(verb, call, sent));
    (status(&answer).to_owned(), body(&answer).to_owned())
}

#[test]
fn every_documented_call_is_served_with_its_method_only() {
    let fake_vmm = FakeVmm::start();
    let document = openapi();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 17);
    for (path, verbs) in paths {
        let call = path.trim_start_matches('/');
        let is_get = verbs.get("get").is_some();
        let wrong = if is_get { "PUT" } else { "GET" };
        let answer = response(&fake_vmm, wrong, call, "");
        let expected = ("HTTP/1.1 400 ".to_owned(), r#"["Bad Request"]"#.to_owned());
        assert_eq!(answer, expected, "{wrong} {call}");
    }
}

#[test]
fn answers_have_cloud_hypervisors_status() {
    let fake_vmm = FakeVmm::start();
    for (verb, call, sent, expected) in [
        ("GET", "vmm.ping", "", "HTTP/1.1 200 "),
        ("PUT", "vmm.shutdown", "", "HTTP/1.1 200 "),
        ("PUT", "vm.boot", "", "HTTP/1.1 204 "),
        ("PUT", "vm.pause", "", "HTTP/1.1 204 "),
        ("PUT", "vm.pause", "{}", "HTTP/1.1 400 "),
        ("PUT", "vm.create", "", "HTTP/1.1 400 "),
        ("PUT", "vm.create", "{", "HTTP/1.1 400 "),
        ("PUT", "vm.nothing", "", "HTTP/1.1 404 "),
        ("POST", "vm.boot", "", "HTTP/1.1 400 "),
        ("GET", "vm.info", "", "HTTP/1.1 404 "),
        ("PUT", "vm.remove-device", r#"{"id":"x"}"#, "HTTP/1.1 404 "),
        (
            "PUT",
            "vm.add-device",
            r#"{"path":"/sys/x"}"#,
            "HTTP/1.1 204 ",
        ),
        (
            "PUT",
            "vm.add-device",
            r#"{"path":"/sys/x","id":"a"}"#,
            "HTTP/1.1 200 ",
        ),
    ] {
        let (status, _) = response(&fake_vmm, verb, call, sent);
        assert_eq!(status, expected, "{verb} {call} {sent}");
    }
}

#[test]
fn errors_are_lists_of_messages() {
    let fake_vmm = FakeVmm::start();
    let sent = r#"{"path":"/sys/x","id":"refused"}"#;
    let (status, body) = response(&fake_vmm, "PUT", "vm.add-device", sent);
    assert_eq!(status, "HTTP/1.1 409 ");
    assert_eq!(
        serde_json::from_str::<Vec<String>>(&body).unwrap(),
        [
            "Error from API",
            "The device could not be added to the VM",
            REASON
        ]
    );
}

#[test]
fn an_unknown_field_is_reported_with_the_known_ones() {
    let fake_vmm = FakeVmm::start();
    let sent = r#"{"path":"/sys/x","p2pp":true}"#;
    let (status, body) = response(&fake_vmm, "PUT", "vm.add-device", sent);
    assert_eq!(status, "HTTP/1.1 400 ");
    assert!(
        body.starts_with(r#"["Failed to deserialize JSON","p2pp: unknown field `p2pp`"#)
            && body.contains("`p2p_domain`"),
        "{body}"
    );
}

#[test]
fn headers_have_the_spelling_that_cloud_hypervisors_client_expects() {
    let fake_vmm = FakeVmm::start();
    let answer = ask(&fake_vmm.socket(), &request("GET", "vmm.ping", ""));
    assert!(answer.contains("\r\nContent-Length: "), "{answer}");
    assert!(
        answer.contains("\r\nContent-Type: application/json\r\n"),
        "{answer}"
    );
}

#[test]
fn a_connection_serves_several_requests() {
    let fake_vmm = FakeVmm::start();
    let mut stream = connect(&fake_vmm.socket());
    for _ in 0..3 {
        stream
            .write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap();
        assert!(some[..count].starts_with(b"HTTP/1.1 200 \r\n"));
    }
}
