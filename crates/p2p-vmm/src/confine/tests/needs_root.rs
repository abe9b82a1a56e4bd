//! What root gives up.

use super::*;

#[test]
#[ignore = "needs root: cargo xtask test runs it as root"]
fn the_thread_that_reads_the_host_reads_what_is_everybodys() {
    let dir = tempfile::tempdir().unwrap();
    let [everybodys, roots] = ["everybodys", "roots"].map(|name| dir.path().join(name));
    for (path, mode) in [(dir.path(), 0o755), (&everybodys, 0o644), (&roots, 0o600)] {
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
        // Without Landlock, to see that it does not take that.
        Confinement::new(None, None).enter(Role::Host).unwrap();
        assert!(File::open(&everybodys).is_ok());
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        for line in [
            "Uid:\t65534\t65534\t65534\t65534",
            "CapPrm:\t0000000000200000",
        ] {
            assert!(status.contains(line), "{line}: {status}");
        }
        assert_eq!(opens(&everybodys), (true, false));
        assert_eq!(opens(&roots), (false, false));
        assert_eq!(lengths(), all_of_each);
        for file in &files {
            let everybodys = fs::metadata(file).unwrap().mode() & 0o004 != 0;
            let opened = File::open(file).is_ok();
            assert!(everybodys || !opened, "{}", file.display());
        }
    });
}
