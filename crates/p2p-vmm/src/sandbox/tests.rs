//! Restrictions of a thread cannot be undone, so each test uses a thread of its own.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vmm_api::{PayloadConfig, SerialConfig};

use super::*;

mod needs_landlock;
mod needs_root;

/// Runs `body` in a new thread.
fn in_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

fn sandbox(seccomp: Option<ViolationAction>, rules: &[&str], socket: Option<&Path>) -> Sandbox {
    let files = Files {
        rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        socket: socket.map(Path::to_owned),
    };
    Sandbox::new(seccomp, Some(files))
}

/// Whether a file can be opened for reading, and for writing.
fn can_open(path: &Path) -> (bool, bool) {
    let write = OpenOptions::new().append(true).open(path);
    (File::open(path).is_ok(), write.is_ok())
}

/// Every world-readable file of every PCI function of this machine.
fn files_of_functions() -> Vec<PathBuf> {
    let functions = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten();
    let files = functions.flat_map(|function| fs::read_dir(function.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap());
    let readable = |file: &fs::DirEntry| {
        let metadata = file.metadata();
        metadata.is_ok_and(|file| file.is_file() && file.mode() & 0o444 != 0)
    };
    files.filter(readable).map(|file| file.path()).collect()
}

#[test]
fn capabilities_are_gone() {
    let of_this_thread = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        (value("CapPrm:"), value("CapEff:"), value("NoNewPrivs:"))
    };
    // CAP_IPC_LOCK.
    const KEPT: u64 = 1 << 14;
    in_a_thread(|| {
        let (before, ..) = of_this_thread();
        let sandbox = Sandbox::new(None, None);
        sandbox.begin().unwrap();
        assert_eq!(of_this_thread(), (before & KEPT, before & KEPT, 1));
        sandbox.enter(Role::Vcpu).unwrap();
        assert_eq!(of_this_thread(), (0, 0, 1));
    });
}

const VIOLATOR: &str = "P2P_VMM_VIOLATOR";

#[test]
fn a_violation_names_the_thread_and_the_call_and_ends_the_process() {
    for (what, words) in [
        ("open", "the vcpu thread made system call 257 (openat)"),
        (
            "socket",
            "the vcpu thread made system call 41 (see ausyscall)",
        ),
        ("ioctl", "the vcpu thread made ioctl 0x5413"),
        ("code", "the vcpu thread made system call 9 (mmap)"),
        ("kill", "the vcpu thread made system call 234 (tgkill)"),
        // A fork would keep the descriptors of devices.
        ("main: fork", "the main thread made system call 56 (clone)"),
        ("main: vfork", "the main thread made system call 58"),
        // The child would have all capabilities in its own namespace.
        (
            "main: user namespace",
            "the main thread made system call 56 (clone)",
        ),
        (
            "main: namespaces of a thread",
            "the main thread made system call 56 (clone)",
        ),
    ] {
        let output = violating_process(what);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(words), "{what}: {stderr}");
        assert!(!stderr.contains("continues"), "{what}: {stderr}");
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGSYS),
            "{what}: {stderr}"
        );
    }
}

/// Runs a process with a sandboxed thread that does `what`.
fn violating_process(what: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            // The test must start without other threads.
            "--test-threads=1",
            "sandbox::tests::violate",
        ])
        .env(VIOLATOR, what)
        .output()
        .unwrap()
}

#[test]
fn permitted_calls_are_no_violation() {
    for what in ["memory", "main: thread", "main: clone3"] {
        let output = violating_process(what);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.contains("continues"),
            "{what}: {stderr}"
        );
    }
}

#[test]
#[ignore = "ends its process; run by the tests above"]
fn violate() {
    let what = std::env::var(VIOLATOR).unwrap();
    let sandbox = Sandbox::new(Some(ViolationAction::Trap), None);
    sandbox.prepare().unwrap();
    sandbox.begin().unwrap();
    let role = match what.starts_with("main: ") {
        true => Role::Main,
        false => Role::Vcpu,
    };
    in_a_thread(move || {
        sandbox.enter(role).unwrap();
        // Errors do not matter: the call must not return.
        match what.as_str() {
            "main: fork" => forbidden::clone(libc::SIGCHLD),
            "main: vfork" => forbidden::vfork(),
            "main: user namespace" => forbidden::clone(libc::CLONE_NEWUSER | libc::SIGCHLD),
            "main: namespaces of a thread" => forbidden::clone(
                libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_NEWNET,
            ),
            "main: thread" => std::thread::spawn(|| {}).join().unwrap(),
            "main: clone3" => assert_eq!(forbidden::clone3(), Some(libc::ENOSYS)),
            "open" => drop(File::open("/etc/passwd")),
            "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            "ioctl" => drop(rustix::termios::tcgetwinsize(io::stderr())),
            "code" => forbidden::executable_memory(),
            "kill" => forbidden::signal_to_init(),
            "memory" => {
                let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 64 << 10]).collect();
                assert_eq!(blocks.iter().map(Vec::len).sum::<usize>(), 4 << 20);
            }
            other => panic!("{other}?"),
        }
        eprintln!("continues");
    });
}

mod forbidden {
    #![allow(unsafe_code, reason = "system calls that only fail")]

    pub(super) fn executable_memory() {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the mapping is new and unused.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    }

    pub(super) fn clone(flags: i32) {
        // SAFETY: the filter ends the process here. Without a filter the child exits at once.
        if unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } == 0 {
            // SAFETY: the child touches no memory of this process.
            unsafe { libc::_exit(1) };
        }
    }

    pub(super) fn vfork() {
        // SAFETY: the filter ends the process here. Without a filter the child exits at once, without a change to
        // memory.
        if unsafe { libc::syscall(libc::SYS_vfork) } == 0 {
            // SAFETY: the child touches no memory of this process.
            unsafe { libc::_exit(1) };
        }
    }

    pub(super) fn clone3() -> Option<i32> {
        // SAFETY: without arguments the kernel does nothing.
        let result = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
        let error = std::io::Error::last_os_error();
        (result == -1).then(|| error.raw_os_error()).flatten()
    }

    pub(super) fn signal_to_init() {
        // SAFETY: signal 0 only checks whether the process exists.
        unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) };
    }
}

#[test]
fn every_filter_can_be_installed() {
    for action in [ViolationAction::Trap, ViolationAction::Log] {
        for role in Role::ALL {
            in_a_thread(move || {
                let sandbox = Sandbox::new(Some(action), None);
                sandbox.enter(role).unwrap();
            });
        }
    }
}

/// The names below `heading` of docs/security.md, in the block that begins with `of`.
fn documented(heading: &str, of: &str) -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, text) = page.split_once(heading).unwrap();
    let (_, names) = text.split_once(&format!("\n{of}: ")).unwrap();
    let end = names
        .find("\n\n")
        .into_iter()
        .chain(names.find("\n```"))
        .min();
    let names = names[..end.unwrap()].split_ascii_whitespace();
    names.map(str::to_owned).collect()
}

#[test]
fn the_lists_are_documented() {
    let union = |heading: &str, blocks: &[&str]| {
        let blocks = blocks.iter().map(|of| documented(heading, of));
        blocks.flatten().collect::<BTreeSet<_>>()
    };
    let calls = |role| {
        let names = system_calls::of(role).map(|(_, name)| name.strip_prefix("SYS_").unwrap());
        names.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    for (role, blocks) in [
        (Role::Main, &["every thread", "vcpu, main", "main"][..]),
        (Role::Vcpu, &["every thread", "vcpu, main"]),
        (Role::Api, &["every thread", "api"]),
        (Role::Events, &["every thread", "events"]),
        (Role::Log, &["every thread"]),
        (Role::Host, &["every thread", "host"]),
    ] {
        assert_eq!(calls(role), union("## System calls", blocks), "{role:?}");
    }
    let ioctls = |role| ioctls::of(role).map(|(_, name)| name.to_owned());
    let of_ioctls = "by number";
    assert_eq!(
        ioctls(Role::Main).collect::<BTreeSet<_>>(),
        union(of_ioctls, &["vcpu, main", "main"])
    );
    assert_eq!(
        ioctls(Role::Vcpu).collect::<BTreeSet<_>>(),
        union(of_ioctls, &["vcpu, main"])
    );
}

#[test]
fn file_rules_use_cloud_hypervisors_syntax() {
    assert!("path=/a,access=r".parse::<FileRule>().is_ok());
    assert!("path=/a,access=rw".parse::<FileRule>().is_ok());
    let error = |text: &str| text.parse::<FileRule>().unwrap_err().to_string();
    assert_eq!(
        error("path=/a,access=w"),
        "option \"access\": \"w\" is not r or rw"
    );
    assert_eq!(error("path=/a"), "option \"access\" is missing");
}
