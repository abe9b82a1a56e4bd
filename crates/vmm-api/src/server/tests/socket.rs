use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use super::super::{ApiServer, ServerError};
use super::*;
use crate::Call;
use crate::EventLog;
use crate::SocketError;
use crate::puppet::Puppet;

#[test]
fn the_socket_is_its_owners_only_and_goes_with_the_server() {
    let mut puppet = Puppet::start();
    let metadata = fs::metadata(puppet.socket()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    puppet.stop_serving();
    assert!(!puppet.socket().exists());
}

#[test]
fn a_socket_that_somebody_answers_at_is_not_taken_away() {
    let puppet = Puppet::start();
    let before = fs::metadata(puppet.socket()).unwrap().ino();
    let error = ApiServer::start(&puppet.socket(), &EventLog::new(), || Ok(())).err();
    assert!(matches!(
        error,
        Some(ServerError::Socket(SocketError::InUse { .. }))
    ));
    assert_eq!(fs::metadata(puppet.socket()).unwrap().ino(), before);
}

#[test]
fn what_an_earlier_vmm_left_behind_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (server, _calls) = ApiServer::start(&path, &EventLog::new(), || Ok(())).unwrap();
    drop(server);
}

#[test]
fn a_file_is_not_taken_away() {
    let puppet = Puppet::start();
    let path = puppet.dir().join("file");
    fs::write(&path, "precious").unwrap();
    let error = ApiServer::start(&path, &EventLog::new(), || Ok(())).err();
    assert!(matches!(
        error,
        Some(ServerError::Socket(SocketError::NotASocket { .. }))
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn who_asks_when_the_owner_of_the_vm_is_gone_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (server, calls) = ApiServer::start(&path, &EventLog::new(), || Ok(())).unwrap();
    drop(calls);
    let answer = ask(&path, &request("GET", "vmm.ping", ""));
    assert_eq!(status(&answer), "HTTP/1.1 503 ");
    drop(server);
}

#[test]
fn who_is_answered_as_the_vmm_ends_hears_it() {
    for _ in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (server, calls) = ApiServer::start(&path, &EventLog::new(), || Ok(())).unwrap();
        let owner = std::thread::spawn(move || {
            loop {
                if let Some(Call::ShutdownVmm(reply)) = calls.next() {
                    reply.send(Ok(()));
                    drop(calls);
                    drop(server);
                    return;
                }
            }
        });
        let answer = ask(&path, &request("PUT", "vmm.shutdown", ""));
        assert_eq!(status(&answer), "HTTP/1.1 200 ");
        owner.join().unwrap();
    }
}

mod needs_root;
