//! Checks that a VM behaves as a transaction expects, through the API of its VMM.
//!
//! ```text
//! vmm-conformance willing|unwilling|dead VM SOCKET ID BDF on|off     a device of a p2p-vmm VM, and whether it is a peer
//! vmm-conformance record SOCKET ID                                   a device of a cloud-hypervisor VM whose guest
//!                                                                 releases devices; also prints each call with its
//!                                                                 answer as one line of JSON
//! ```
//!
//! Prints one line per check; exit code 0 if all succeeded.

mod recorder;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hotplug::regroup::conformance::{Results, dead, unwilling, willing};
use hotplug::regroup::{CloudHypervisorVmm, RemoteVmm, VmDevice, Vmm};
use lab::report::tell;
use serde_json::Value;
use vmm_api::{Client, Decision, FilteredCall, RequestFilter};

use crate::recorder::Recorder;

const USAGE: &str =
    "usage: vmm-conformance willing|unwilling|dead VM SOCKET ID BDF on|off, or record SOCKET ID";

/// A filter that permits everything: policy is not part of conformance.
struct Open;

impl RequestFilter for Open {
    fn decide(&self, _: FilteredCall, body: &[u8], _: &[OwnedFd]) -> Decision {
        Decision::Forward(body.to_vec())
    }

    fn memory(&self, _: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        None
    }
}

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let results = match words.as_slice() {
        ["record", socket, id] => record(Path::new(socket), id)?,
        [kind, vm, socket, id, bdf, p2p] => {
            let suite = match *kind {
                "willing" => willing,
                "unwilling" => unwilling,
                "dead" => dead,
                _ => bail!(USAGE),
            };
            let device = VmDevice {
                vm: (*vm).to_owned(),
                id: (*id).to_owned(),
                function: bdf.parse()?,
                p2p: *p2p == "on",
                domain: None,
                expose: BTreeSet::new(),
                slot: None,
            };
            suite(
                &RemoteVmm::new(*vm, Client::new(Path::new(socket))),
                &device,
            )
        }
        _ => bail!(USAGE),
    };
    Ok(tell(&results))
}

/// Checks the conformance of a cloud-hypervisor, and prints the calls and answers.
fn record(socket: &Path, id: &str) -> Result<Results> {
    let recorder = Recorder::default();
    let client = Client::new(recorder.stand_before(socket)?);
    let events = PathBuf::from("/run/p2pctl/events");
    let vmm = CloudHypervisorVmm::new("vm", client, Box::new(Open), events);
    let devices = vmm.devices()?;
    let device = devices.iter().find(|device| device.id == id);
    let device = device.with_context(|| format!("there is no {id} among {devices:?}"))?;
    let results = willing(&vmm, device);
    for exchange in recorder.exchanges() {
        println!("{}", serde_json::to_string(&exchange)?);
    }
    Ok(results)
}
