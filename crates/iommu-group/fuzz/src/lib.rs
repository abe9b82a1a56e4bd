//! What the fuzz targets share: machines made from arbitrary bytes, and what must hold for every machine.

#[path = "../../tests/common/carry_out.rs"]
mod carrying_out;
mod check;
mod goals;
mod machine;

pub use check::{check_groups, check_partition, check_resets, check_routes, check_text, is_lawful};
pub use goals::goals;
use iommu_group::{GroupModel, Kernel, Plan, Topology};
pub use machine::{machine, machine_with_groups};

/// A machine with a switch, that plans are tried on.
pub const MACHINE: &str = include_str!("../../../../resources/topologies/switch-four-nvme.json");

/// Does every step of a plan to a model of the machine, and fails if that is not safe or not what the plan says.
pub fn carry_out<'t>(topology: &'t Topology, kernel: &Kernel, plan: &Plan) -> GroupModel<'t> {
    carrying_out::carry_out(topology, kernel, plan)
}
