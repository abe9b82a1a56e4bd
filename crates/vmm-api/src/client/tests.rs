use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;

use super::*;
use crate::Event;
use crate::fake_vmm::{FakeVmm, REASON};

const SOON: Duration = Duration::from_secs(60);

fn device(id: &str) -> DeviceConfig {
    DeviceConfig {
        path: Some("/sys/x".into()),
        fd: None,
        id: Some(id.to_owned()),
        p2p: true,
        p2p_domain: None,
        expose: BTreeSet::new(),
    }
}

#[test]
fn calls_are_answered() {
    let fake_vmm = FakeVmm::start();
    let client = Client::new(fake_vmm.socket());
    assert_eq!(client.ping().unwrap().build_version, "fake");
    client.act("vm.pause").unwrap();
    let added = client.add_device(&device("nvme0")).unwrap().unwrap();
    assert_eq!(added.bdf, "0000:02:00.0");
}

#[test]
fn refusals_and_failures_are_different_errors() {
    let fake_vmm = FakeVmm::start();
    let client = Client::new(fake_vmm.socket());
    let error = client.add_device(&device("refused")).unwrap_err();
    let ClientError::Refused { reasons, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(reasons, [REASON]);

    let error = client.info().unwrap_err();
    assert_eq!(
        error.to_string(),
        "vm.info: The VM info is not available: VM is not created"
    );
}

#[test]
fn a_call_without_an_answer_ends_at_its_deadline() {
    let fake_vmm = FakeVmm::start();
    let client = Client::new(fake_vmm.socket()).with_patience(Duration::from_millis(50));
    let error = client.add_device(&device("stalls")).unwrap_err();
    assert!(matches!(error, ClientError::Late { .. }), "{error}");
}

#[test]
fn a_failed_connection_names_the_socket() {
    let error = Client::new("/nonexistent/socket").ping().unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to /nonexistent/socket");
}

#[test]
fn events_arrive_until_the_server_ends() {
    let mut fake_vmm = FakeVmm::start();
    let client = Client::new(fake_vmm.socket());
    let mut events = client.events().unwrap();
    assert_eq!(events.next(Duration::from_millis(1)).unwrap(), Next::Quiet);
    client.add_device(&device("nvme0")).unwrap();
    fake_vmm.events.publish(&Event::VmPaused);
    for name in ["device-added", "paused"] {
        let Next::Event(record) = events.next(SOON).unwrap() else {
            panic!("no event {name}");
        };
        assert_eq!(record.event, name);
    }
    fake_vmm.stop_serving();
    assert_eq!(events.next(SOON).unwrap(), Next::End);
}

#[test]
fn a_device_descriptor_is_sent_with_its_request() {
    let fake_vmm = FakeVmm::start();
    let mut file = tempfile::tempfile().unwrap();
    let number = file.as_raw_fd().to_string();
    let device: DeviceConfig = format!("fd={number},id=x").parse().unwrap();
    let client = Client::new(fake_vmm.socket());
    assert_eq!(client.add_device(&device).unwrap().unwrap().id, "x");
    let mut name = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut name).unwrap();
    assert_eq!(name, "x", "the server wrote through the descriptor");
}

#[test]
fn a_descriptor_that_is_not_open_is_named() {
    let device: DeviceConfig = "fd=987654".parse().unwrap();
    let error = Client::new("/nobody").add_device(&device).unwrap_err();
    assert_eq!(error.to_string(), "cannot send descriptor 987654");
}
