//! Replays recorded sessions with releases of cloud-hypervisor: an unplug and a replug make the same calls and parse
//! the answers.
//!
//! `resources/cloud-hypervisor/VERSION.jsonl` has one call per line, recorded by `vmm-conformance record` in the lab.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use hotplug::regroup::conformance::willing;
use hotplug::regroup::{CloudHypervisorVmm, Vmm};
use serde_json::Value;
use vmm_api::{Client, Decision, FilteredCall, RequestFilter};

struct Open;

impl RequestFilter for Open {
    fn decide(&self, _: FilteredCall, body: &[u8], _: &[OwnedFd]) -> Decision {
        Decision::Forward(body.to_vec())
    }

    fn memory(&self, _: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        None
    }
}

fn recordings() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/cloud-hypervisor");
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Plays the recorded answers. Reports calls that were not recorded, or that come too early.
fn play(socket: &Path, recorded: Vec<Value>) -> Receiver<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let (complain, complaints) = channel();
    thread::spawn(move || {
        let mut ahead = VecDeque::from(recorded);
        let mut said: Vec<Value> = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (verb, call, body) = request(&mut stream);
            let asks = |exchange: &Value| {
                exchange["verb"] == verb.as_str()
                    && exchange["call"] == call.as_str()
                    && exchange["body"] == body
            };
            // The number of polls depends on timing: polls may be missing or repeated.
            let until_change = ahead
                .iter()
                .take_while(|exchange| exchange["verb"] == "GET");
            let reach = until_change.count() + 1;
            match ahead.iter().take(reach).position(asks) {
                Some(at) => said.extend(ahead.drain(..=at)),
                None if said.iter().any(asks) && verb == "GET" => {}
                None => complain.send(format!("{verb} {call} {body}")).unwrap(),
            }
            // A call that was not recorded is reported and not answered.
            let Some(last) = said.iter().rev().find(|exchange| asks(exchange)) else {
                continue;
            };
            let answer = match &last["answer"] {
                Value::Null => String::new(),
                answer => answer.to_string(),
            };
            let head = format!(
                "HTTP/1.1 {} \r\nServer: Cloud Hypervisor API\r\nContent-Length: {}\r\n\r\n",
                last["status"],
                answer.len()
            );
            // The client may have gone.
            drop(stream.write_all((head + &answer).as_bytes()));
        }
    });
    complaints
}

fn request(stream: &mut UnixStream) -> (String, String, Value) {
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap();
        bytes.extend_from_slice(&some[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        if !head.is_empty() && body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            let mut words = head.split(' ');
            let (verb, target) = (words.next().unwrap(), words.next().unwrap());
            let call = target.rsplit('/').next().unwrap();
            let body = serde_json::from_str(body).unwrap_or_default();
            return (verb.to_owned(), call.to_owned(), body);
        }
        assert_ne!(count, 0, "a request has no end: {text}");
    }
}

#[test]
fn every_recorded_version_passes_the_conformance_suite() {
    let recordings = recordings();
    for supported in ["v51", "v52", "v53", "v54"] {
        let of = |path: &PathBuf| path.file_name().unwrap().to_str() == Some(supported);
        assert!(
            recordings
                .iter()
                .any(|path| of(&path.with_extension("").with_extension(""))),
            "{supported}"
        );
    }
    for recording in recordings {
        let name = recording.display();
        let text = fs::read_to_string(&recording).unwrap();
        let recorded: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let complaints = play(&socket, recorded);
        let vmm = CloudHypervisorVmm::new("vm", Client::new(&socket), Box::new(Open), dir.path());
        let devices = vmm.devices().unwrap();
        let results = willing(&vmm, &devices[0]);
        let unknown: Vec<String> = complaints.try_iter().collect();
        assert!(unknown.is_empty(), "{name}: not as recorded: {unknown:#?}");
        for (rule, kept) in results {
            assert_eq!(kept, Ok(()), "{name}: {rule}");
        }
    }
}
