//! The program to start.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cloud_hypervisor::Version;

/// Timeout of a program's version output.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// Limit of a program's version output, in bytes.
const MOST_BYTES: u64 = 4096;

/// The version of the program; `None` if its output has none.
pub(super) fn version(program: &OsStr) -> Result<Option<Version>> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    end(&mut child).with_context(|| format!("{} --version", program.display()))?;
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MOST_BYTES)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read the version of {}", program.display()))?;
    }
    Ok(Version::find(&text))
}

/// Waits for a program with little output to end.
fn end(child: &mut Child) -> Result<()> {
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > DEADLINE {
            child.kill()?;
            child.wait()?;
            bail!("it did not answer within {} s", DEADLINE.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = version(OsStr::new("/nonexistent/cloud-hypervisor")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/cloud-hypervisor"));
    }

    #[test]
    fn a_program_that_is_another_has_no_version() {
        assert_eq!(version(OsStr::new("/bin/true")).unwrap(), None);
    }
}
