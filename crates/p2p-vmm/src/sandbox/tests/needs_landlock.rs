//! Files that threads may open.

use super::*;

#[test]
#[ignore = "needs a kernel with Landlock: cargo xtask test runs it where there is one"]
fn the_main_thread_can_open_only_the_files_of_its_first_vm() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    for name in ["kernel", "serial", "other", "allowed"] {
        fs::write(file(name), "x").unwrap();
    }
    let config = |kernel: &str| VmConfig {
        payload: PayloadConfig {
            kernel: file(kernel),
            initramfs: None,
            cmdline: None,
        },
        serial: SerialConfig::File(file("serial")),
        ..serde_json::from_value(serde_json::json!({"payload": {"kernel": "/k"}})).unwrap()
    };
    let rule = format!("path={},access=r", file("allowed").display());
    in_a_thread(|| {
        let sandbox = sandbox(None, &[&rule], None);
        assert_eq!(can_open(&file("other")), (true, true));
        sandbox.begin().unwrap();
        sandbox.restrict_files_to(&config("kernel")).unwrap();
        assert!(sandbox.files_restricted());
        // Another VM neither extends nor restricts the files.
        sandbox.restrict_files_to(&config("other")).unwrap();
        assert_eq!(can_open(&file("kernel")), (true, false));
        assert_eq!(can_open(&file("allowed")), (true, false));
        assert_eq!(can_open(&file("serial")), (true, true));
        File::create(file("serial")).unwrap();
        assert_eq!(can_open(&file("other")), (false, false));
        assert_eq!(can_open(Path::new("/etc/passwd")), (false, false));
        assert!(File::create(file("new")).is_err());
        assert!(fs::remove_file(file("other")).is_err());
        assert!(fs::read_dir("/sys/bus/pci/devices").is_ok());
        // Only the host thread can read the topology: the BARs of all devices are below the same directories.
        for path in ["/proc/cmdline", "/sys/devices/system/cpu/online"] {
            assert_eq!(can_open(Path::new(path)), (false, false), "{path}");
        }
        for file in files_of_functions() {
            assert!(File::open(&file).is_err(), "{}", file.display());
        }
        // Root cannot change the topology either.
        let rescan = OpenOptions::new().write(true).open("/sys/bus/pci/rescan");
        assert_eq!(rescan.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    });
}

#[test]
#[ignore = "needs a kernel with Landlock: cargo xtask test runs it where there is one"]
fn the_host_thread_reads_the_topology_only() {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    in_a_thread(|| {
        sandbox(None, &[], None).enter(Role::Host).unwrap();
        assert_eq!(can_open(elsewhere.path()), (false, false));
        let online = Path::new("/sys/devices/system/cpu/online");
        assert_eq!(can_open(online), (true, false));
        let parameter = Path::new("/sys/module/printk/parameters/time");
        assert_eq!(can_open(parameter), (true, false));
        assert_eq!(can_open(Path::new("/proc/cmdline")), (true, false));
    });
}

#[test]
#[ignore = "needs a kernel with Landlock: cargo xtask test runs it where there is one"]
fn other_threads_open_nothing_and_the_api_removes_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    for role in [Role::Vcpu, Role::Api, Role::Events, Role::Log] {
        fs::write(&socket, "").unwrap();
        in_a_thread(|| {
            sandbox(None, &[], Some(&socket)).enter(role).unwrap();
            assert_eq!(can_open(elsewhere.path()), (false, false), "{role:?}");
            assert_eq!(can_open(&socket), (false, false), "{role:?}");
            assert!(fs::remove_file(elsewhere.path()).is_err(), "{role:?}");
            assert_eq!(fs::remove_file(&socket).is_ok(), role == Role::Api);
        });
    }
}
