//! Registry of the virtual machines that `p2pctl launch` started, for `p2pctl serve`.
//!
//! Each entry is a link, named after the VM, to the socket of its VMM. Registration therefore needs no running daemon,
//! and a VM that has ended leaves a dangling link.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm_api::connect;

/// Directory of the links: `NAME.sock`.
pub(crate) const VMS: &str = "/run/p2pctl/vms";

/// Directory of the event monitors' output files, which are named by process ID.
pub(crate) const EVENTS: &str = "/run/p2pctl/events";

/// Registers a VM by a name, or by the name of its socket.
pub(crate) fn register(dir: &Path, name: Option<&str>, socket: &Path) -> Result<()> {
    let own = || socket.file_stem().and_then(|stem| stem.to_str());
    let name = name.or_else(own).unwrap_or_default();
    if name.is_empty() || name.contains('/') {
        bail!(
            "{} gives no name for the VM: give --name NAME",
            socket.display()
        );
    }
    let target = std::path::absolute(socket)
        .with_context(|| format!("cannot resolve {}", socket.display()))?;
    let link = dir.join(format!("{name}.sock"));
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    tidy(dir);
    match fs::read_link(&link) {
        Ok(other) if other == target => return Ok(()),
        // A name belongs to one VM. A VM that does not listen yet counts as ended here.
        Ok(other) if is_alive(&other) => bail!(
            "a VM with the name {name} exists already, at {}: give --name NAME",
            other.display()
        ),
        Ok(_) => {
            fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", link.display()));
        }
    }
    symlink(&target, &link).with_context(|| format!("cannot create {}", link.display()))
}

/// Removes the links of VMs that have ended. Recent links are kept because their VM may not listen yet.
fn tidy(dir: &Path) {
    const NEW: Duration = Duration::from_secs(60);
    let entries = fs::read_dir(dir).into_iter().flatten();
    let links = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_old = |link: &Path| {
        let made = fs::symlink_metadata(link).and_then(|link| link.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > NEW))
    };
    let gone =
        |link: &PathBuf| is_old(link) && fs::read_link(link).is_ok_and(|target| !target.exists());
    for link in links.filter(gone) {
        // Another process may clean up at the same time.
        drop(fs::remove_file(link));
    }
}

fn is_alive(socket: &Path) -> bool {
    // A VMM that is too busy to accept a connection is alive.
    match connect(socket, Duration::from_secs(1)) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::TimedOut,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_vm_is_known_by_the_name_of_its_socket_or_by_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (vms, socket) = (dir.path().join("vms"), dir.path().join("web.sock"));
        let _vmm = UnixListener::bind(&socket).unwrap();
        for name in [None, Some("db"), Some("db")] {
            register(&vms, name, &socket).unwrap();
        }
        for name in ["web.sock", "db.sock"] {
            assert_eq!(fs::read_link(vms.join(name)).unwrap(), socket);
        }
        assert!(register(&vms, Some("a/b"), &socket).is_err());
    }

    #[test]
    fn a_name_is_taken_while_its_vm_lives() {
        let dir = tempfile::tempdir().unwrap();
        let vms = dir.path().join("vms");
        let at = |name: &str| dir.path().join(name).join("api.sock");
        for name in ["one", "two"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let vmm = UnixListener::bind(at("one")).unwrap();
        register(&vms, None, &at("one")).unwrap();
        let error = register(&vms, None, &at("two")).unwrap_err().to_string();
        assert!(error.contains("--name"), "{error}");
        drop(vmm);
        register(&vms, None, &at("two")).unwrap();
        assert_eq!(fs::read_link(vms.join("api.sock")).unwrap(), at("two"));
    }
}
