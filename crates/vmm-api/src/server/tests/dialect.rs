use super::*;
use crate::openapi;
use crate::puppet::{Puppet, REASON};

/// Status line and body of the answer.
fn told(puppet: &Puppet, verb: &str, call: &str, sent: &str) -> (String, String) {
    let answer = ask(&puppet.socket(), &request(verb, call, sent));
    (status(&answer).to_owned(), body(&answer).to_owned())
}

#[test]
fn every_call_of_the_document_is_served_with_its_verb_only() {
    let puppet = Puppet::start();
    let document = openapi();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 17);
    for (path, verbs) in paths {
        let call = path.trim_start_matches('/');
        let is_get = verbs.get("get").is_some();
        let wrong = if is_get { "PUT" } else { "GET" };
        let answer = told(&puppet, wrong, call, "");
        let expected = ("HTTP/1.1 400 ".to_owned(), r#"["Bad Request"]"#.to_owned());
        assert_eq!(answer, expected, "{wrong} {call}");
    }
}

#[test]
fn answers_have_the_status_that_cloud_hypervisor_gives() {
    let puppet = Puppet::start();
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
        let (status, _) = told(&puppet, verb, call, sent);
        assert_eq!(status, expected, "{verb} {call} {sent}");
    }
}

#[test]
fn errors_are_lists_of_messages_from_the_top() {
    let puppet = Puppet::start();
    let sent = r#"{"path":"/sys/x","id":"refused"}"#;
    let (status, body) = told(&puppet, "PUT", "vm.add-device", sent);
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
fn an_unknown_field_is_an_error_that_names_it_and_the_known_ones() {
    let puppet = Puppet::start();
    let sent = r#"{"path":"/sys/x","p2pp":true}"#;
    let (status, body) = told(&puppet, "PUT", "vm.add-device", sent);
    assert_eq!(status, "HTTP/1.1 400 ");
    assert!(
        body.starts_with(r#"["Failed to deserialize JSON","p2pp: unknown field `p2pp`"#)
            && body.contains("`p2p_domain`"),
        "{body}"
    );
}

#[test]
fn headers_are_spelled_as_cloud_hypervisors_client_looks_for_them() {
    let puppet = Puppet::start();
    let answer = ask(&puppet.socket(), &request("GET", "vmm.ping", ""));
    assert!(answer.contains("\r\nContent-Length: "), "{answer}");
    assert!(
        answer.contains("\r\nContent-Type: application/json\r\n"),
        "{answer}"
    );
}

#[test]
fn a_connection_may_be_used_again() {
    let puppet = Puppet::start();
    let mut stream = connect(&puppet.socket());
    for _ in 0..3 {
        stream
            .write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap();
        assert!(some[..count].starts_with(b"HTTP/1.1 200 \r\n"));
    }
}
