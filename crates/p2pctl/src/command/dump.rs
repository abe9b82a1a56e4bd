//! `p2pctl dump`: the machine as one file.

use crate::answer::Answer;
use crate::source::Source;

/// Prints the file. It is always JSON. It contains PCI data and the kernel parameters that affect groups and routes.
pub(crate) fn run(source: &Source) -> Answer {
    Answer::raw(source.topology().to_fixture()).about(source)
}
