//! The machines that `resources/topologies` has.

mod client;
mod parts;
mod server;
pub(crate) mod small;

use crate::machine::Machine;

/// Every machine by the name of its file.
pub(crate) fn all() -> Vec<(&'static str, Machine)> {
    vec![
        ("gpu-server-two-sockets", server::gpu_server()),
        ("gpu-server-epyc", server::epyc()),
        ("sriov-1000", server::sriov_1000()),
        ("vmd", server::vmd()),
        ("client-intel", client::intel()),
        ("client-amd", client::amd()),
        ("deep-bridges", client::deep_bridges()),
        ("pcie-to-pci-bridge", small::pcie_to_pci_bridge()),
        ("switch-without-acs", small::switch_without_acs()),
        ("switch-four-nvme", small::switch_four_nvme()),
        ("switch-joined", small::switch_joined()),
        ("unprivileged", small::unprivileged()),
    ]
}

/// A switch with as many downstream ports and endpoints as it takes to have so many functions, on several root buses.
pub(crate) fn many(functions: usize) -> Machine {
    small::many(functions)
}
