//! `p2pctl/reset-scope/1`.

use iommu_group::{Reset, Sbdf};
use serde::Serialize;

/// The document.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    schema: &'static str,
    function: Sbdf,
    resets: &'a [Reset],
    /// The one that would be used, of the kinds that were asked for.
    chosen: Option<&'a Reset>,
    /// Functions that it hits and that are not owned.
    not_owned: &'a [Sbdf],
}

/// Makes the document.
pub(crate) fn document<'a>(
    function: Sbdf,
    resets: &'a [Reset],
    chosen: Option<&'a Reset>,
    not_owned: &'a [Sbdf],
) -> Document<'a> {
    Document {
        schema: "p2pctl/reset-scope/1",
        function,
        resets,
        chosen,
        not_owned,
    }
}
