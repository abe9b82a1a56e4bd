//! Filtered calls of all clients are serialized until the VMM's final answer.

use super::*;

/// Long enough for the decision about a call that does not wait.
const MOMENT: Duration = Duration::from_millis(300);

/// Sends a call on its own connection without waiting for the answer.
fn send(stage: &Stage, call: &str, body: &str) -> UnixStream {
    let mut client = connect(&stage.path());
    client.write_all(&put(call, body)).unwrap();
    client
}

#[test]
fn a_filtered_call_waits_for_the_answer_to_the_previous_one() {
    let stage = Stage::new();
    let mut first = send(&stage, "vm.create", LATER);
    stage.heard();
    let mut second = send(&stage, "vm.add-device", "{}");
    thread::sleep(MOMENT);
    assert_eq!(stage.filter.filtered_calls(), [FilteredCall::Create]);
    // Unfiltered calls do not wait.
    assert!(
        stage
            .ask(b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n")
            .starts_with("HTTP/1.1 200 ")
    );
    stage.request();
    stage.answer.send(()).unwrap();
    assert!(answer(&mut first).starts_with("HTTP/1.1 200 "));
    assert!(answer(&mut second).starts_with("HTTP/1.1 200 "));
    assert_eq!(
        stage.filter.filtered_calls(),
        [FilteredCall::Create, FilteredCall::AddDevice]
    );
}

#[test]
fn the_filter_lock_outlives_a_client_that_goes_away_or_times_out() {
    for (patience, goes) in [(PATIENCE, true), (Duration::from_millis(50), false)] {
        let stage = Stage::with_max_patience(patience);
        let mut first = send(&stage, "vm.create", LATER);
        stage.heard();
        if goes {
            drop(first);
        } else {
            let answer = answer(&mut first);
            assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        }
        let mut second = send(&stage, "vm.add-device", NO);
        thread::sleep(MOMENT);
        assert_eq!(
            stage.filter.filtered_calls(),
            [FilteredCall::Create],
            "{goes}"
        );
        stage.answer.send(()).unwrap();
        assert!(answer(&mut second).starts_with("HTTP/1.1 409 "));
    }
}

#[test]
fn interim_answers_are_skipped() {
    // This VMM sends status 100 before each answer.
    let stage = Stage::new();
    let answer = stage.ask(&put("vm.create", "{}"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The proxy does not forward the client's `Expect` header.
    let text =
        "PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}";
    stage.ask(text.as_bytes());
    stage.heard();
    let raw = stage.heard().raw;
    assert!(
        !String::from_utf8_lossy(&raw)
            .to_lowercase()
            .contains("expect")
    );
}

#[test]
fn a_refusal_does_not_overtake_an_answer() {
    let stage = Stage::new();
    let mut client = connect(&stage.path());
    let both = [put("vm.pause", ""), put("vm.create", NO)].concat();
    client.write_all(&both).unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 200 "));
    assert!(answer(&mut client).starts_with("HTTP/1.1 409 "));
}

#[test]
fn a_client_that_closed_its_sending_side_gets_its_answer() {
    let stage = Stage::new();
    let mut client = send(&stage, "vm.pause", "");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 "), "{all}");
}
