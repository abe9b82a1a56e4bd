//! `p2pctl draw`: the machine as SVG.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use iommu_group::Scope;

use super::matrix::Matrix;
use crate::answer::Answer;
use crate::draw::picture;
use crate::leaks;
use crate::peers::Peers;
use crate::show::Text;
use crate::source::Source;

/// What to draw, and the output file.
pub(crate) struct Request<'a> {
    pub(crate) title: Option<&'a str>,
    pub(crate) all: bool,
    pub(crate) scope: Scope,
    pub(crate) output: Option<&'a Path>,
}

/// Draws the machine as SVG.
pub(crate) fn run(source: &Source, request: &Request<'_>) -> Result<Answer> {
    let kernel = source.topology().host().kernel_release.as_deref();
    let title = match (request.title, kernel) {
        (Some(title), _) => title.to_owned(),
        (None, Some(kernel)) => format!("PCIe devices and IOMMU groups, Linux {kernel}"),
        (None, None) => "PCIe devices and IOMMU groups".to_owned(),
    };
    let topology = source.topology();
    let pairs = source.host.pairs(request.scope);
    // With too many devices for a matrix, the picture has none; `p2pctl matrix` compares named functions.
    let peers = Peers::select(source, &[]).map_or_else(|_| Vec::new(), |peers| peers.functions);
    let matrix = Matrix::new(&pairs, peers);
    let warnings = leaks::sentences(
        topology,
        source.names,
        &pairs.routing().isolation_holes(pairs.groups()),
    );
    let svg = picture::draw(&picture::Request {
        topology,
        names: source.names,
        title: &title,
        all: request.all,
        matrix: &matrix,
        warnings: &warnings,
    });
    match request.output {
        None => Ok(Answer::raw(svg).about(source)),
        Some(file) => {
            fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
            Ok(Answer::text(Text::new()).about(source))
        }
    }
}
