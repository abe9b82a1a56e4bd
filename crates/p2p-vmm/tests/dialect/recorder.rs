//! Listens in while a real `ch-remote` talks to p2p-vmm.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use crate::talk::{Conversation, DIR, Exchange, steady};
use crate::vmm::Vmm;

/// Lets `client` say every command.
pub(crate) fn record(client: &OsStr, vmm: &Vmm, commands: &[&str]) -> Conversation {
    let dir = vmm.dir().display().to_string();
    let listener = UnixListener::bind(vmm.dir().join("between")).unwrap();
    let exchanges = commands.iter().map(|command| {
        let mut child = Command::new(client)
            .arg("--api-socket")
            .arg(vmm.dir().join("between"))
            .args(command.replace(DIR, &dir).split(' '))
            .spawn()
            .unwrap();
        let (near, _) = listener.accept().unwrap();
        let far = UnixStream::connect(vmm.socket()).unwrap();
        let said = forward(near.try_clone().unwrap(), far.try_clone().unwrap());
        let heard = forward(far.try_clone().unwrap(), near.try_clone().unwrap());
        child.wait().unwrap();
        let sent = said.join().unwrap();
        far.shutdown(std::net::Shutdown::Both).unwrap();
        Exchange {
            command: (*command).to_owned(),
            sent: sent.replace(&dir, DIR),
            received: steady(&heard.join().unwrap(), &dir),
        }
    });
    Conversation(exchanges.collect())
}

/// Passes on everything, and says in the end what it was.
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
