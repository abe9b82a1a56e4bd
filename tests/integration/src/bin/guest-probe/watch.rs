//! Reports when a file, such as a drive's, appears and disappears.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Polling interval.
const PERIOD: Duration = Duration::from_millis(2);

/// Prints `came 0`, `went 0`, `came 1` and so on, without end.
pub(crate) fn run(path: &Path) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let mut said = |what: &str, number: u32| {
        writeln!(out, "{what} {number}")?;
        out.flush()
    };
    for number in 0.. {
        while !path.exists() {
            std::thread::sleep(PERIOD);
        }
        said("came", number)?;
        while path.exists() {
            std::thread::sleep(PERIOD);
        }
        said("went", number)?;
    }
    Ok(true)
}
