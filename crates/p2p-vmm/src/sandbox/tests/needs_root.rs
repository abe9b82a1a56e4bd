//! Restrictions of root.

use super::*;

#[test]
#[ignore = "needs root: cargo xtask test runs it as root"]
fn the_host_thread_reads_world_readable_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let [world_readable, root_only] =
        ["world_readable", "root_only"].map(|name| dir.path().join(name));
    for (path, mode) in [
        (dir.path(), 0o755),
        (&world_readable, 0o644),
        (&root_only, 0o600),
    ] {
        if path != dir.path() {
            fs::write(path, "x").unwrap();
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let files = files_of_functions();
    let config = |file: &&PathBuf| file.file_name() == Some("config".as_ref());
    let lengths = || -> Vec<usize> {
        let spaces = files.iter().filter(config);
        spaces.map(|file| fs::read(file).unwrap().len()).collect()
    };
    let all_of_each = lengths();
    in_a_thread(|| {
        // Without Landlock, so that only the user is restricted.
        Sandbox::new(None, None).enter(Role::Host).unwrap();
        assert!(File::open(&world_readable).is_ok());
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        for line in [
            "Uid:\t65534\t65534\t65534\t65534",
            "CapPrm:\t0000000000200000",
        ] {
            assert!(status.contains(line), "{line}: {status}");
        }
        assert_eq!(can_open(&world_readable), (true, false));
        assert_eq!(can_open(&root_only), (false, false));
        assert_eq!(lengths(), all_of_each);
        for file in &files {
            let world_readable = fs::metadata(file).unwrap().mode() & 0o004 != 0;
            let opened = File::open(file).is_ok();
            assert!(world_readable || !opened, "{}", file.display());
        }
    });
}
