//! What is given up is given up by a thread, so each test has one that is not needed afterwards.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use super::*;

/// What `body` finds in a thread of its own.
fn in_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

fn is_denied<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Threads are started, and nothing else is.
fn assert_starts_threads_only() {
    std::thread::spawn(|| {}).join().unwrap();
    assert!(is_denied(Command::new("/bin/true").status()));
    assert_eq!(calls::clone(libc::SIGCHLD), Err(libc::EPERM));
    assert_eq!(
        calls::clone(libc::CLONE_NEWUSER | libc::SIGCHLD),
        Err(libc::EPERM)
    );
    let of_a_thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
    assert_eq!(
        calls::clone(of_a_thread | libc::CLONE_NEWNET),
        Err(libc::EPERM)
    );
    assert_eq!(calls::plain(libc::SYS_clone3), Err(libc::ENOSYS));
    for call in [
        libc::SYS_fork,
        libc::SYS_unshare,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        // ptrace, as x32 has it.
        0x4000_0000 | 521,
    ] {
        assert_eq!(calls::plain(call), Err(libc::EPERM), "{call}");
    }
}

#[test]
fn the_proxy_has_its_sockets_and_the_topology() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["sys", "proc", "run", "vmm"] {
        fs::create_dir(at(name)).unwrap();
    }
    for name in ["sys/config", "proc/cmdline"] {
        fs::write(at(name), "x").unwrap();
    }
    let vmm = UnixListener::bind(at("vmm/socket")).unwrap();
    in_a_thread(|| {
        let listen = at("run/socket");
        proxy(&at("sys"), &listen, None).unwrap();
        let listener = UnixListener::bind(&listen).unwrap();
        let client = std::thread::spawn(move || UnixStream::connect(listen).unwrap());
        listener.accept().unwrap();
        client.join().unwrap();
        UnixStream::connect(at("vmm/socket")).unwrap();
        vmm.accept().unwrap();
        fs::remove_file(at("run/socket")).unwrap();

        assert_starts_threads_only();
        assert!(is_denied(TcpListener::bind("127.0.0.1:0")));
        assert!(File::open(at("sys/config")).is_ok());
        assert!(File::open(at("proc/cmdline")).is_ok());
    });
}

mod needs_landlock {
    use super::*;

    #[test]
    #[ignore = "needs a kernel with Landlock: cargo xtask test runs it where there is one"]
    fn the_proxy_opens_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["sys", "proc", "run", "vmm"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["sys/config", "proc/kcore", "other", "run/file"] {
            fs::write(at(name), "x").unwrap();
        }
        in_a_thread(|| {
            proxy(&at("sys"), &at("run/socket"), None).unwrap();
            assert!(File::open(at("sys/config")).is_ok());
            for name in ["other", "run/file", "proc/kcore"] {
                assert!(is_denied(File::open(at(name))), "{name}");
            }
            for name in ["sys/config", "run/new", "vmm/new"] {
                assert!(is_denied(File::create(at(name))), "{name}");
            }
            assert!(is_denied(UnixListener::bind(at("vmm/another"))));
        });
    }

    #[test]
    #[ignore = "needs a kernel with Landlock: cargo xtask test runs it where there is one"]
    fn who_looks_at_the_host_for_launch_opens_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, other) = (dir.path().join("sys"), dir.path().join("other"));
        fs::create_dir(&sysfs).unwrap();
        fs::write(&other, "x").unwrap();
        in_a_thread(|| {
            inspection(&sysfs).unwrap();
            assert!(fs::read_dir(&sysfs).is_ok());
            assert!(is_denied(File::open(&other)));
        });
    }
}

#[test]
fn the_daemon_starts_no_program_and_talks_to_nobody_far_away() {
    let dir = tempfile::tempdir().unwrap();
    in_a_thread(|| {
        daemon().unwrap();
        assert_starts_threads_only();
        assert!(is_denied(TcpListener::bind("127.0.0.1:0")));
        let events = calls::socket(libc::AF_NETLINK);
        assert_ne!(events, Err(libc::EPERM));
        // What it writes, and where, is its purpose.
        fs::write(dir.path().join("journal"), "x").unwrap();
        UnixListener::bind(dir.path().join("socket")).unwrap();
    });
}

#[test]
fn who_looks_at_the_host_for_launch_does_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let sysfs = dir.path().join("sys");
    fs::create_dir(&sysfs).unwrap();
    in_a_thread(|| {
        inspection(&sysfs).unwrap();
        assert!(fs::read_dir(&sysfs).is_ok());
        assert_starts_threads_only();
        assert_eq!(calls::socket(libc::AF_UNIX), Err(libc::EPERM));
    });
    // Another thread starts programs.
    assert!(Command::new("/bin/true").status().unwrap().success());
}

#[test]
fn capabilities_are_gone() {
    in_a_thread(|| {
        let dir = tempfile::tempdir().unwrap();
        proxy(dir.path(), &dir.path().join("socket"), None).unwrap();
        let left = capabilities(None).unwrap().permitted;
        let kept =
            CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        assert_eq!(left - kept, CapabilitySet::empty());
        assert!(rustix::thread::no_new_privs().unwrap());
    });
}

mod calls {
    #![allow(unsafe_code, reason = "system calls that fail")]

    fn result(value: i64) -> Result<i64, i32> {
        let error = std::io::Error::last_os_error().raw_os_error();
        match value {
            -1 => Err(error.unwrap_or(0)),
            value => Ok(value),
        }
    }

    /// With arguments that are good for nothing.
    pub(super) fn plain(call: i64) -> Result<i64, i32> {
        // SAFETY: without arguments these calls touch nothing of this process.
        result(unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) })
    }

    pub(super) fn clone(flags: i32) -> Result<i64, i32> {
        // SAFETY: a child that there should not be ends at once.
        let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if child == 0 {
            // SAFETY: nothing of this process is touched.
            unsafe { libc::_exit(1) };
        }
        result(child)
    }

    pub(super) fn socket(family: i32) -> Result<i64, i32> {
        // SAFETY: a new descriptor, which lives as long as the process.
        result(unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_DGRAM, 0) })
    }
}
