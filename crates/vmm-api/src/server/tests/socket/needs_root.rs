//! Access of another user to the socket.

use super::*;

/// Runs `body` as another user in a thread of its own.
fn as_another_user<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let other = || {
        // The user ID of nobody. Credentials belong to a thread (credentials(7)).
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        body()
    };
    std::thread::scope(|scope| scope.spawn(other).join().unwrap())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it as root"]
fn another_user_is_refused_by_the_file_mode_and_by_the_server() {
    let fake_vmm = FakeVmm::start();
    let socket = fake_vmm.socket();
    let mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
    mode(fake_vmm.dir(), 0o755).unwrap();
    let connect = || UnixStream::connect(&socket).map(drop);
    let connected = as_another_user(connect);
    let kind = connected.map_err(|error| error.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::PermissionDenied));

    // The mode of the file was changed to permit everybody.
    mode(&socket, 0o666).unwrap();
    let ping = request("GET", "vmm.ping", "");
    let heard = as_another_user(|| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may have closed the connection already.
        let _ = stream.write_all(&ping);
        stream.read_to_end(&mut Vec::new()).map_err(|e| e.kind())
    });
    // Closing a connection with unread data resets it.
    let closed = [Ok(0), Err(std::io::ErrorKind::ConnectionReset)];
    assert!(closed.contains(&heard), "{heard:?}");
    assert_eq!(status(&ask(&socket, &ping)), "HTTP/1.1 200 ");
}
