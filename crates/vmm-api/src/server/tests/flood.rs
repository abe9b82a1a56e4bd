use std::time::Instant;

use super::*;
use crate::fake_vmm::FakeVmm;

/// Number of clients in the flood.
const CLIENTS: usize = 1000;
/// Number of calls of the VM's own client meanwhile.
const CALLS: usize = 20;
/// Time limit for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A client that sends nothing, garbage, half a request, or a valid request.
fn connect_somehow(socket: &Path, number: usize) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let ping = request("GET", "vmm.ping", "");
    let says: &[u8] = match number % 8 {
        0 | 1 => b"",
        2 => b"\x16\x03\x01\x02\x00\x01\x00",
        3 => b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
        _ => &ping,
    };
    stream.write_all(says).ok()?;
    Some(stream)
}

#[test]
fn a_thousand_clients_do_not_block_another_client() {
    let fake_vmm = FakeVmm::start();
    let socket = fake_vmm.socket();
    let flooded = socket.clone();
    let flood = std::thread::spawn(move || {
        let clients = (0..CLIENTS).map(|number| connect_somehow(&flooded, number));
        clients.collect::<Vec<_>>()
    });

    let mut slowest = Duration::ZERO;
    for _ in 0..CALLS {
        let asked = Instant::now();
        let answer = ask(&socket, &request("GET", "vmm.ping", ""));
        assert_eq!(status(&answer), "HTTP/1.1 200 ");
        slowest = slowest.max(asked.elapsed());
    }
    let held = flood.join().unwrap();
    assert_eq!(held.iter().flatten().count(), CLIENTS);
    // All clients are connected now.
    let asked = Instant::now();
    let answer = ask(&socket, &request("GET", "vmm.ping", ""));
    assert_eq!(status(&answer), "HTTP/1.1 200 ");
    slowest = slowest.max(asked.elapsed());
    assert!(slowest < ANSWER_TIME, "{slowest:?}");
    drop(held);
}

#[test]
fn event_streams_survive_a_flood_and_their_number_is_limited() {
    let fake_vmm = FakeVmm::start();
    let socket = fake_vmm.socket();
    let open = || {
        let mut stream = connect(&socket);
        stream
            .write_all(b"GET /api/v1/events HTTP/1.0\r\n\r\n")
            .unwrap();
        let mut some = [0; 16];
        stream.read_exact(&mut some).unwrap();
        (stream, String::from_utf8_lossy(&some).into_owned())
    };
    let streams: Vec<_> = (0..33).map(|_| open()).collect();
    let (last, others) = streams.split_last().unwrap();
    assert!(others.iter().all(|(_, head)| head.contains(" 200 ")));
    assert!(last.1.contains(" 429 "), "{}", last.1);

    let flood: Vec<_> = (0..CLIENTS).map(|_| UnixStream::connect(&socket)).collect();
    fake_vmm.events.publish(&crate::Event::VmPaused);
    for (mut stream, _) in streams.into_iter().take(32) {
        let mut text = String::new();
        while !text.contains("event: paused") {
            let mut some = [0; 256];
            let count = stream.read(&mut some).unwrap();
            assert!(count > 0, "the stream was closed: {text}");
            text.push_str(&String::from_utf8_lossy(&some[..count]));
        }
    }
    drop(flood);
}
