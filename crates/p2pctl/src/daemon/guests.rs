//! The virtual machines that the daemon knows.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;

use hotplug::Client;
use hotplug::regroup::RemoteVmm;

/// `NAME=SOCKET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedSocket {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
}

impl FromStr for NamedSocket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, socket)) if !name.is_empty() && !socket.is_empty() => Ok(Self {
                name: name.to_owned(),
                socket: socket.into(),
            }),
            _ => Err("want NAME=SOCKET, such as web=/run/vm/web.sock".to_owned()),
        }
    }
}

/// Where virtual machines are found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guests {
    pub(crate) named: Vec<NamedSocket>,
    /// A directory with a socket for each: `NAME.sock`.
    pub(crate) dir: Option<PathBuf>,
}

impl Guests {
    /// The sockets there are now. What is named explicitly goes before what is found.
    pub(crate) fn sockets(&self) -> Vec<NamedSocket> {
        let mut all = self.named.clone();
        let entries = self.dir.iter().filter_map(|dir| fs::read_dir(dir).ok());
        let mut found: Vec<NamedSocket> = entries
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
            .filter_map(|entry| {
                let socket = entry.path();
                let name = socket.file_stem()?.to_str()?.to_owned();
                Some(NamedSocket { name, socket })
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.retain(|guest| {
            let known =
                |other: &NamedSocket| other.name == guest.name || other.socket == guest.socket;
            !self.named.iter().any(known)
        });
        all.extend(found);
        all
    }

    /// The virtual machines at them, those included that have gone and left their sockets.
    pub(crate) fn now(&self) -> Vec<RemoteVmm> {
        let sockets = self.sockets().into_iter();
        sockets
            .map(|guest| RemoteVmm::new(guest.name, Client::new(guest.socket)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> NamedSocket {
        text.parse().unwrap()
    }

    #[test]
    fn sockets_of_a_directory_come_behind_those_that_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let _sockets = ["b.sock", "a.sock"]
            .map(|name| std::os::unix::net::UnixListener::bind(at(name)).unwrap());
        fs::write(at("notes.txt"), "").unwrap();
        let guests = Guests {
            named: vec![named("b=/elsewhere")],
            dir: Some(dir.path().to_owned()),
        };
        let found = guests.sockets();
        let names: Vec<_> = found.iter().map(|guest| guest.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(found[0].socket, PathBuf::from("/elsewhere"));
        assert_eq!(found[1].socket, at("a.sock"));
    }

    #[test]
    fn a_socket_without_a_name_is_refused() {
        for text in ["", "a", "a=", "=b"] {
            assert!(text.parse::<NamedSocket>().is_err(), "{text}");
        }
    }
}
