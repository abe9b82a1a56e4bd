use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;

use super::*;
use crate::Event;
use crate::puppet::{Puppet, REASON};

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
    let puppet = Puppet::start();
    let client = Client::new(puppet.socket());
    assert_eq!(client.ping().unwrap().build_version, "puppet");
    client.act("vm.pause").unwrap();
    let added = client.add_device(&device("nvme0")).unwrap().unwrap();
    assert_eq!(added.bdf, "0000:02:00.0");
}

#[test]
fn a_refusal_is_told_apart_from_a_failure() {
    let puppet = Puppet::start();
    let client = Client::new(puppet.socket());
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
fn a_call_that_gets_no_answer_ends_by_its_deadline() {
    let puppet = Puppet::start();
    let client = Client::new(puppet.socket()).with_patience(Duration::from_millis(50));
    let error = client.add_device(&device("stalls")).unwrap_err();
    assert!(matches!(error, ClientError::Late { .. }), "{error}");
}

#[test]
fn where_nobody_listens_is_said() {
    let error = Client::new("/nonexistent/socket").ping().unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to /nonexistent/socket");
}

#[test]
fn events_come_as_they_happen_until_the_end() {
    let mut puppet = Puppet::start();
    let client = Client::new(puppet.socket());
    let mut events = client.events().unwrap();
    assert_eq!(events.next(Duration::from_millis(1)).unwrap(), Next::Quiet);
    client.add_device(&device("nvme0")).unwrap();
    puppet.events.publish(&Event::VmPaused);
    for name in ["device-added", "paused"] {
        let Next::Event(record) = events.next(SOON).unwrap() else {
            panic!("no event {name}");
        };
        assert_eq!(record.event, name);
    }
    puppet.stop_serving();
    assert_eq!(events.next(SOON).unwrap(), Next::End);
}

#[test]
fn a_device_that_is_a_descriptor_is_sent_with_its_request() {
    let puppet = Puppet::start();
    let mut file = tempfile::tempfile().unwrap();
    let number = file.as_raw_fd().to_string();
    let device: DeviceConfig = format!("fd={number},id=x").parse().unwrap();
    let client = Client::new(puppet.socket());
    assert_eq!(client.add_device(&device).unwrap().unwrap().id, "x");
    let mut name = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut name).unwrap();
    assert_eq!(name, "x", "written by who got the descriptor");
}

#[test]
fn a_descriptor_that_is_not_open_is_named() {
    let device: DeviceConfig = "fd=987654".parse().unwrap();
    let error = Client::new("/nobody").add_device(&device).unwrap_err();
    assert_eq!(error.to_string(), "cannot send descriptor 987654");
}
