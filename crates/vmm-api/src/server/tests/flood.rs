use std::time::Instant;

use super::*;
use crate::puppet::Puppet;

/// As many as try to keep the VM's own client out.
const CLIENTS: usize = 1000;
/// How often its own client asks meanwhile.
const CALLS: usize = 20;
/// How long an answer may take in the worst case.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A client that says nothing, something senseless, half a request, or something sensible.
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
fn a_thousand_clients_do_not_keep_the_vms_own_out() {
    let puppet = Puppet::start();
    let socket = puppet.socket();
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
    // Now that all are there and hold on.
    let asked = Instant::now();
    let answer = ask(&socket, &request("GET", "vmm.ping", ""));
    assert_eq!(status(&answer), "HTTP/1.1 200 ");
    slowest = slowest.max(asked.elapsed());
    assert!(slowest < ANSWER_TIME, "{slowest:?}");
    drop(held);
}

#[test]
fn streams_of_events_are_not_closed_by_a_flood_and_not_endless() {
    let puppet = Puppet::start();
    let socket = puppet.socket();
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
    puppet.events.publish(&crate::Event::VmPaused);
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
