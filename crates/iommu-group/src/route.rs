//! How the hardware carries requests between functions, and which of that may be used.

mod block;
mod exposure;
mod fabric;
mod holes;
mod leak;
mod p2pdma;
mod path;
mod requester;
mod root_complex;
mod verdict;

pub use block::Block;
pub use exposure::Exposure;
pub use fabric::Fabric;
pub use holes::{HoleCause, MemoryHole};
pub use leak::{Leak, Reach};
pub use p2pdma::{P2pDma, P2pMapping};
pub use path::{Crossing, Route};
pub use verdict::{Denial, Placement, Scope, Verdict};
