//! How the hardware carries requests between functions, and what may be made of it.

mod block;
mod exposure;
mod fabric;
mod holes;
mod leak;
mod p2pdma;
mod path;
mod policy;
mod requester;
mod root_complex;

pub use block::Block;
pub use exposure::{Exposure, is_vfio_driver};
pub use fabric::Fabric;
pub use holes::{HoleCause, MemoryHole};
pub use leak::{Leak, Reach};
pub use p2pdma::{P2pDma, P2pMapping};
pub use path::{Crossing, Route};
pub use policy::{Denial, Placement, Policy, Role, Scope, Verdict};
