//! Answers and events of a VMM.

mod removals;
mod server;

pub(crate) use removals::monitor;

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hotplug::regroup::{CloudHypervisorVmm, RemoteVmm, Vmm};
use vmm_api::{Client, ClientError, Next, P2pInfo, VmInfo, VmmPing};

use crate::http::Judge;
use server::Server;

/// Timeout of a call. The answer is available at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// A call that takes longer waits for something.
const SOON: Duration = Duration::from_secs(4);

static SERVER: LazyLock<Mutex<Server>> = LazyLock::new(|| Mutex::new(Server::start()));

/// Sends the input as the bytes of an answer, in pieces. Checks that the client parses them or returns an error in
/// time.
pub(crate) fn answer(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else {
        return;
    };
    let server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    server.answer_with(bytes);
    let client = Client::new(server.socket()).with_patience(PATIENCE);
    let started = Instant::now();
    match kind % 8 {
        0 => explained(client.info().map(|_: VmInfo| ())),
        1 => explained(client.p2p().map(|_: P2pInfo| ())),
        2 => explained(client.ping().map(|_: VmmPing| ())),
        3 => explained(client.act("vm.pause")),
        4 => drop(RemoteVmm::new("vm", client).devices()),
        5 => drop(
            CloudHypervisorVmm::new("vm", client, Box::new(Judge::default()), "/nonexistent")
                .devices(),
        ),
        _ => events(&client),
    }
    let took = started.elapsed();
    assert!(took < SOON, "{took:?}");
}

/// Checks that a call succeeds or returns an error with a message.
fn explained(result: Result<(), ClientError>) {
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
}

/// Checks that a stream of events ends.
fn events(client: &Client) {
    match client.events() {
        Ok(mut stream) => loop {
            match stream.next(PATIENCE) {
                Ok(Next::Event(record)) => drop(record),
                Ok(Next::Quiet) => panic!("the stream had ended"),
                Ok(Next::End) => return,
                Err(error) => return explained(Err(error)),
            }
        },
        Err(error) => explained(Err(error)),
    }
}
