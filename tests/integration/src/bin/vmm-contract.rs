//! Checks that a VM behind the API of its VMM does what a transaction expects of VMs.
//!
//! ```text
//! vmm-contract willing|unwilling|dead VM SOCKET ID BDF on|off     a device of the VM, and whether it is a peer
//! ```
//!
//! One line per check; exit code 0 if all went well.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use hotplug::Client;
use hotplug::regroup::contract::{dead, unwilling, willing};
use hotplug::regroup::{Assigned, RemoteVmm};

const USAGE: &str = "usage: vmm-contract willing|unwilling|dead VM SOCKET ID BDF on|off";

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [kind, vm, socket, id, bdf, p2p] = words.as_slice() else {
        bail!(USAGE);
    };
    let suite = match *kind {
        "willing" => willing,
        "unwilling" => unwilling,
        "dead" => dead,
        _ => bail!(USAGE),
    };
    let device = Assigned {
        vm: (*vm).to_owned(),
        id: (*id).to_owned(),
        function: bdf.parse()?,
        p2p: *p2p == "on",
        domain: None,
        slot: None,
    };
    let vmm = RemoteVmm::new(*vm, Client::new(Path::new(socket)));
    let mut code = ExitCode::SUCCESS;
    for (name, result) in suite(&vmm, &device) {
        match result {
            Ok(()) => println!("ok {name}"),
            Err(why) => {
                println!("FAILED {name}: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
