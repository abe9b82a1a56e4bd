//! One gated call at a time, of all clients, until the VMM has answered it for good.

use super::*;

/// Long enough for a call that does not wait to be decided about.
const MOMENT: Duration = Duration::from_millis(300);

/// Sends a call on a connection of its own and does not wait for the answer.
fn send(stage: &Stage, call: &str, body: &str) -> UnixStream {
    let mut client = connect(&stage.path());
    client.write_all(&put(call, body)).unwrap();
    client
}

#[test]
fn a_gated_call_waits_until_the_one_before_is_answered() {
    let stage = Stage::new();
    let mut first = send(&stage, "vm.create", LATER);
    stage.heard();
    let mut second = send(&stage, "vm.add-device", "{}");
    thread::sleep(MOMENT);
    assert_eq!(stage.gate.asked(), [GatedCall::Create]);
    // Others do not wait.
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
        stage.gate.asked(),
        [GatedCall::Create, GatedCall::AddDevice]
    );
}

#[test]
fn a_client_that_goes_away_or_is_told_to_give_up_leaves_its_turn_to_the_vmm() {
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
        assert_eq!(stage.gate.asked(), [GatedCall::Create], "{goes}");
        stage.answer.send(()).unwrap();
        assert!(answer(&mut second).starts_with("HTTP/1.1 409 "));
    }
}

#[test]
fn an_interim_answer_is_no_answer() {
    // The VMM of this stage says 100 before each answer.
    let stage = Stage::new();
    let answer = stage.ask(&put("vm.create", "{}"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The client's wish to be told to go on is not passed on.
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
fn a_client_that_has_said_all_still_gets_its_answer() {
    let stage = Stage::new();
    let mut client = send(&stage, "vm.pause", "");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 "), "{all}");
}
