//! `p2pctl draw`: the machine as SVG.

use std::fs;

use anyhow::{Context, Result};

use super::matrix::Matrix;
use crate::answer::Answer;
use crate::cli::DrawArgs;
use crate::draw::picture;
use crate::isolation_holes;
use crate::peers::Peers;
use crate::show::Text;
use crate::source::Source;

/// Draws the machine as SVG.
pub(crate) fn run(source: &Source, args: &DrawArgs) -> Result<Answer> {
    let kernel = source.topology().host().kernel_release.as_deref();
    let title = match (&args.title, kernel) {
        (Some(title), _) => title.clone(),
        (None, Some(kernel)) => format!("PCIe devices and IOMMU groups, Linux {kernel}"),
        (None, None) => "PCIe devices and IOMMU groups".to_owned(),
    };
    let topology = source.topology();
    let pairs = source.host.pairs(args.policy);
    // With too many devices for a matrix, the picture has none; `p2pctl matrix` compares named functions.
    let peers = Peers::select(source, &[]).map_or_else(|_| Vec::new(), |peers| peers.functions);
    let matrix = Matrix::new(&pairs, peers);
    let warnings = isolation_holes::sentences(
        topology,
        source.names,
        &pairs.routing().isolation_holes(pairs.groups()),
    );
    let svg = picture::draw(&picture::Request {
        topology,
        names: source.names,
        title: &title,
        all: args.all,
        matrix: &matrix,
        warnings: &warnings,
    });
    match &args.output {
        None => Ok(Answer::raw(svg).about(source)),
        Some(file) => {
            fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
            Ok(Answer::text(Text::new()).about(source))
        }
    }
}
