use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use super::super::{ApiServer, ServerError};
use super::*;
use crate::Call;
use crate::EventLog;
use crate::SocketError;
use crate::fake_vmm::FakeVmm;

#[test]
fn only_the_owner_has_access_and_the_server_removes_the_socket() {
    let mut fake_vmm = FakeVmm::start();
    let metadata = fs::metadata(fake_vmm.socket()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    fake_vmm.stop_serving();
    assert!(!fake_vmm.socket().exists());
}

#[test]
fn a_socket_with_a_listener_is_not_replaced() {
    let fake_vmm = FakeVmm::start();
    let before = fs::metadata(fake_vmm.socket()).unwrap().ino();
    let error = ApiServer::start(&fake_vmm.socket(), &EventLog::new(), || Ok(())).err();
    assert!(matches!(
        error,
        Some(ServerError::Socket(SocketError::InUse { .. }))
    ));
    assert_eq!(fs::metadata(fake_vmm.socket()).unwrap().ino(), before);
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (server, _calls) = ApiServer::start(&path, &EventLog::new(), || Ok(())).unwrap();
    drop(server);
}

#[test]
fn a_regular_file_is_not_replaced() {
    let fake_vmm = FakeVmm::start();
    let path = fake_vmm.dir().join("file");
    fs::write(&path, "precious").unwrap();
    let error = ApiServer::start(&path, &EventLog::new(), || Ok(())).err();
    assert!(matches!(
        error,
        Some(ServerError::Socket(SocketError::NotASocket { .. }))
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_call_without_an_owner_of_the_vm_gets_503() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (server, calls) = ApiServer::start(&path, &EventLog::new(), || Ok(())).unwrap();
    drop(calls);
    let answer = ask(&path, &request("GET", "vmm.ping", ""));
    assert_eq!(status(&answer), "HTTP/1.1 503 ");
    drop(server);
}

#[test]
fn an_answer_is_delivered_while_the_vmm_ends() {
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
