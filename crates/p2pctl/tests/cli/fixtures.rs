//! The files in `resources/topologies` are what the machines described here look like.
//!
//! After a change of a machine or of the file format, `P2PCTL_UPDATE=1 cargo test -p p2pctl fixtures` writes them anew.

use std::fs;

use crate::machines;
use crate::run::{OnDisk, fixture};

#[test]
fn fixtures_are_what_dump_writes_of_their_machines() {
    let update = std::env::var_os("P2PCTL_UPDATE").is_some();
    for (name, machine) in machines::all() {
        let dump = OnDisk::new(&machine).run(&["dump"]);
        assert_eq!(dump.status, 0, "{name}: {}", dump.stderr);
        let file = fixture(name);
        if update {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &dump.stdout).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            committed == dump.stdout,
            "{} is not what `p2pctl dump` writes of the machine: set P2PCTL_UPDATE=1 to write it anew",
            file.display()
        );
    }
}
