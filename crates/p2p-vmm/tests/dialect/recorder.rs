//! Records the requests and responses of a real `ch-remote` with p2p-vmm.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use crate::recording::{DIR, Exchange, Recording, normalized};
use crate::vmm::Vmm;

/// Runs `client` with every command.
pub(crate) fn record(client: &OsStr, vmm: &Vmm, commands: &[&str]) -> Recording {
    let dir = vmm.dir().display().to_string();
    let listener = UnixListener::bind(vmm.dir().join("between")).unwrap();
    let exchanges = commands.iter().map(|command| {
        let mut child = Command::new(client)
            .arg("--api-socket")
            .arg(vmm.dir().join("between"))
            .args(command.replace(DIR, &dir).split(' '))
            .spawn()
            .unwrap();
        let (client_side, _) = listener.accept().unwrap();
        let vmm_side = UnixStream::connect(vmm.socket()).unwrap();
        let requests = forward(
            client_side.try_clone().unwrap(),
            vmm_side.try_clone().unwrap(),
        );
        let responses = forward(
            vmm_side.try_clone().unwrap(),
            client_side.try_clone().unwrap(),
        );
        child.wait().unwrap();
        let sent = requests.join().unwrap();
        vmm_side.shutdown(std::net::Shutdown::Both).unwrap();
        Exchange {
            command: (*command).to_owned(),
            sent: sent.replace(&dir, DIR),
            received: normalized(&responses.join().unwrap(), &dir),
        }
    });
    Recording(exchanges.collect())
}

/// Forwards all bytes, and returns them in the end.
fn forward(mut from: UnixStream, mut to: UnixStream) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut some = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut some) {
            all.extend_from_slice(&some[..count]);
            if to.write_all(&some[..count]).is_err() {
                break;
            }
        }
        String::from_utf8(all).unwrap()
    })
}
