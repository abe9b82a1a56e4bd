//! Requests that would bypass the filter if the proxy forwarded the client's bytes.

use super::*;

#[test]
fn the_absolute_form_of_a_target_is_filtered() {
    let stage = Stage::new();
    let text = format!(
        "PUT http://localhost/api/v1/vm.add-device HTTP/1.1\r\nContent-Length: 4\r\n\r\n{NO}"
    );
    let answer = stage.ask(text.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    stage.assert_nothing_heard();
}

#[test]
fn a_bare_line_feed_cannot_hide_a_request() {
    let stage = Stage::new();
    let hidden = String::from_utf8(put("vm.add-device", NO)).unwrap();
    let text = format!(
        "PUT /api/v1/vm.resize HTTP/1.1\r\nX: y\nContent-Length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    stage.ask(text.as_bytes());
    let (_, target, body) = stage.request();
    assert_eq!((target.as_str(), body), ("/api/v1/vm.resize", hidden));
    stage.assert_nothing_heard();
}

#[test]
fn unknown_calls_are_refused() {
    let stage = Stage::new();
    for target in [
        "/api/v1/vm.add-anything",
        "/api/v1/vm.add%2Ddevice",
        "/api/v1/vm.add-device/",
        "/api/v1//vm.add-device",
        "/api/v1/VM.add-device",
        "/api/v2/vm.add-device",
        "/vm.add-device",
        "*",
        "http://localhost",
    ] {
        let text = format!("PUT {target} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}");
        let answer = stage.ask(text.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 404 "), "{target}: {answer}");
    }
    for verb in ["POST", "put", "PATCH", "GET"] {
        let text =
            format!("{verb} /api/v1/vm.add-device HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}");
        let answer = stage.ask(text.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{verb}: {answer}");
    }
    stage.assert_nothing_heard();
    assert!(stage.filter.filtered_calls().is_empty());
}
