//! Thousands of nearly valid requests: the VMM's parser sees exactly one request for each, the one that was decided
//! about.

use fastrand::Rng;

use super::*;

/// Number of requests.
const ROUNDS: usize = 3000;

const SEEDS: [&str; 6] = [
    "PUT /api/v1/vm.add-device HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 2\r\n\r\n{}",
    "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{}",
    "PUT http://localhost/api/v1/vm.add-device HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "PUT /api/v1/vm.add-disk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "PUT /api/v1/vm.resize HTTP/1.1\r\nX: y\nContent-Length: 66\r\n\r\n\
        PUT /api/v1/vm.add-device HTTP/1.1\r\nContent-Length: 4\r\n\r\n\"no\"",
    "GET /api/v1/vm.info HTTP/1.1\r\nAccept-Encoding: identity\r\n\r\nPUT /api/v1/vm.pause HTTP/1.1\r\n\r\n",
];

/// Text inserted at random positions.
const PARTS: [&str; 24] = [
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "\n\n",
    " ",
    "\t",
    ":",
    "\0",
    "?",
    "#",
    "/",
    "%2e",
    "http://x",
    "\u{b}",
    "0",
    "2",
    "Content-Length: 0\r\n",
    "Content-Length: 4\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "Connection: close\r\n",
    "PUT /api/v1/vm.add-device HTTP/1.1\r\n",
    "HTTP/1.0",
];

fn mutated(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = SEEDS[rng.usize(..SEEDS.len())].as_bytes().to_vec();
    for _ in 0..rng.usize(..4) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..3)).min(bytes.len());
        let part: &[u8] = match rng.u8(..4) {
            0 => b"",
            1 => &[rng.u8(..)],
            _ => PARTS[rng.usize(..PARTS.len())].as_bytes(),
        };
        bytes.splice(at..end, part.iter().copied());
    }
    bytes
}

#[test]
fn the_vmm_sees_the_request_that_was_decided_about() {
    let seed = 0x5eed_0015;
    let mut rng = Rng::with_seed(seed);
    let stage = Stage::new();
    let (mut passed, mut gated) = (0, 0);
    for round in 0..ROUNDS {
        let bytes = mutated(&mut rng);
        let mut client = connect(&stage.path());
        // The proxy may close the connection before all is sent.
        let _ = client.write_all(&bytes);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
        let mut judged: Vec<Vec<u8>> = stage
            .filter
            .0
            .lock()
            .unwrap()
            .drain(..)
            .filter_map(|(_, passage)| match passage {
                Decision::Forward(body) => Some(body),
                _ => None,
            })
            .collect();
        let sent = String::from_utf8_lossy(&bytes).into_owned();
        for heard in stage.heard.try_iter() {
            let what = format!(
                "seed {seed:x}, round {round}: {sent:?} became {:?}",
                String::from_utf8_lossy(&heard.raw)
            );
            let (verb, target, body) = heard.request.expect(&what);
            let whole = heard.raw.strip_suffix(body.as_slice()).expect(&what);
            let head = match body.len() {
                0 => String::new(),
                length => format!("Content-Length: {length}\r\nContent-Type: application/json\r\n"),
            };
            let head =
                format!("{verb} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{head}\r\n");
            assert_eq!(String::from_utf8_lossy(whole), head, "{what}");
            let call = target.strip_prefix("/api/v1/").expect(&what);
            passed += 1;
            if ["vm.create", "vm.add-device"].contains(&call) {
                gated += 1;
                assert!(!judged.is_empty() && judged.remove(0) == body, "{what}");
            } else {
                assert!(
                    ["vm.add-disk", "vm.resize", "vm.info", "vm.pause"].contains(&call),
                    "{what}"
                );
            }
        }
        assert!(
            judged.is_empty(),
            "seed {seed:x}, round {round}: {sent:?} was accepted and not forwarded"
        );
    }
    // The test must have exercised both cases.
    assert!(
        gated > ROUNDS / 20 && passed > ROUNDS / 10,
        "{gated} {passed} of {ROUNDS}"
    );
}
