//! `p2pctl draw`: the machine as a picture.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::answer::Answer;
use crate::draw::picture;
use crate::show::Text;
use crate::source::Source;

/// What to draw, and where to put it.
pub(crate) struct Request<'a> {
    pub(crate) title: Option<&'a str>,
    pub(crate) all: bool,
    pub(crate) output: Option<&'a Path>,
}

/// Draws the machine as SVG.
pub(crate) fn run(source: &Source, request: &Request<'_>) -> Result<Answer> {
    let kernel = source.topology.host().kernel_release.as_deref();
    let title = match (request.title, kernel) {
        (Some(title), _) => title.to_owned(),
        (None, Some(kernel)) => format!("PCIe devices and IOMMU groups, Linux {kernel}"),
        (None, None) => "PCIe devices and IOMMU groups".to_owned(),
    };
    let svg = picture::draw(&picture::Request {
        topology: &source.topology,
        names: source.names,
        title: &title,
        all: request.all,
    });
    match request.output {
        None => Ok(Answer::raw(svg).about(source)),
        Some(file) => {
            fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
            Ok(Answer::text(Text::new()).about(source))
        }
    }
}
