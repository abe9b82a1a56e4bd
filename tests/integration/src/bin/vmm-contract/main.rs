//! Runs the contract of virtual machines on one of them.
//!
//! ```text
//! vmm-contract own|stock SOCKET ID    a VM of p2p-vmm, or of cloud-hypervisor, and the device that is taken out and
//!                                     put back
//! vmm-contract record SOCKET ID       as stock, and prints what was said, a line of JSON for each call
//! ```
//!
//! Exit code 0 if it keeps to it.

mod recorder;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use hotplug::regroup::contract::willing;
use hotplug::regroup::{RemoteVmm, StockVmm, Vmm};
use hotplug::{Client, Gate, GatedCall, Passage};

use crate::recorder::Recorder;

/// Lets everything pass: what is judged is not the contract's business.
struct Open;

impl Gate for Open {
    fn pass(&self, _: GatedCall, _: &[u8]) -> Passage {
        Passage::AsIs
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kind, socket, id] = words.as_slice() else {
        bail!("usage: vmm-contract own|stock|record SOCKET ID");
    };
    let socket = PathBuf::from(socket);
    let recorder = Recorder::default();
    let vmm: Box<dyn Vmm> = match kind.as_str() {
        "own" => Box::new(RemoteVmm::new("vm", Client::new(socket))),
        "stock" => stock(socket),
        "record" => stock(recorder.stand_before(&socket)?),
        _ => bail!("{kind} is neither own nor stock nor record"),
    };
    let devices = vmm.devices()?;
    let device = devices.iter().find(|device| device.id == *id);
    let device = device.with_context(|| format!("there is no {id} among {devices:?}"))?;
    for (rule, result) in willing(vmm.as_ref(), device) {
        result.map_err(|why| anyhow!("{rule}: {why}"))?;
    }
    for exchange in recorder.exchanges() {
        println!("{}", serde_json::to_string(&exchange)?);
    }
    Ok(())
}

fn stock(socket: PathBuf) -> Box<dyn Vmm> {
    let client = Client::new(socket);
    Box::new(StockVmm::new(
        "vm",
        client,
        Box::new(Open),
        "/run/p2pctl/events",
    ))
}
