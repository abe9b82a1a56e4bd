//! Another user at the socket.

use super::*;

/// What `body` finds as a user of its own, in a thread of its own.
fn as_another_user<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let other = || {
        // The number of nobody. Credentials are those of a thread (credentials(7)).
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        body()
    };
    std::thread::scope(|scope| scope.spawn(other).join().unwrap())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it as root"]
fn another_user_is_turned_away_by_the_file_and_by_the_server() {
    let puppet = Puppet::start();
    let socket = puppet.socket();
    let mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
    mode(puppet.dir(), 0o755).unwrap();
    let connect = || UnixStream::connect(&socket).map(drop);
    let connected = as_another_user(connect);
    let kind = connected.map_err(|error| error.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::PermissionDenied));

    // Somebody has opened the file to all, or handed the directory around.
    mode(&socket, 0o666).unwrap();
    let ping = request("GET", "vmm.ping", "");
    let heard = as_another_user(|| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may have closed it by now.
        let _ = stream.write_all(&ping);
        stream.read_to_end(&mut Vec::new()).map_err(|e| e.kind())
    });
    // Closed with our words unread is a reset.
    let closed = [Ok(0), Err(std::io::ErrorKind::ConnectionReset)];
    assert!(closed.contains(&heard), "{heard:?}");
    assert_eq!(status(&ask(&socket, &ping)), "HTTP/1.1 200 ");
}
