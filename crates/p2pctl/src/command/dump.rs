//! `p2pctl dump`: the machine as one file.

use crate::answer::Answer;
use crate::source::Source;

/// Prints the file. It is JSON as it is; what is in it is PCI data and the words of the kernel's command line that
/// matter to it.
pub(crate) fn run(source: &Source) -> Answer {
    Answer::raw(source.topology().to_fixture()).about(source)
}
