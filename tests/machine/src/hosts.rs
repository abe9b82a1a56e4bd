//! The machines of `resources/topologies`, and larger ones.

mod client;
mod parts;
mod server;
mod small;

use super::Machine;

/// The machines that have files, by the names of the files.
pub fn all() -> Vec<(&'static str, Machine)> {
    vec![
        ("gpu-server-two-sockets", server::gpu_server()),
        ("gpu-server-epyc", server::epyc()),
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

/// The machine of a file.
///
/// # Panics
///
/// If there is no such machine.
pub fn named(name: &str) -> Machine {
    let found = all().into_iter().find(|(other, _)| *other == name);
    found.unwrap_or_else(|| panic!("no machine `{name}`")).1
}

/// A network card with 1000 virtual functions on four buses.
pub fn sriov_1000() -> Machine {
    server::sriov_1000()
}

/// Switches with drives, on as many root buses as this number of functions needs.
pub fn many(functions: usize) -> Machine {
    small::many(functions)
}
