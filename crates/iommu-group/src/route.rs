//! Routing of requests between functions by the hardware, and verdicts on which routes may be used.

mod block_reason;
mod exposure;
mod holes;
mod isolation_hole;
mod model;
mod p2pdma;
mod path;
mod requester;
mod root_complex;
mod verdict;

pub use block_reason::BlockReason;
pub use exposure::Exposure;
pub use holes::{HoleCause, MemoryHole};
pub use isolation_hole::{IsolationHole, UntranslatedReach};
pub use model::RoutingModel;
pub use p2pdma::{P2pDma, P2pMapping};
pub use path::{Path, Route};
pub use verdict::{Denial, Placement, Scope, Verdict};
