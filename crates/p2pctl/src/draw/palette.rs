//! Colours. Group colours are tints of the Okabe–Ito palette, which is distinguishable with any colour vision.

use crate::show::Tone;

/// Fill and edge of a group.
pub(super) type Pair = (&'static str, &'static str);

const GROUPS: [Pair; 8] = [
    ("#d6e9f8", "#0072b2"),
    ("#fde7c6", "#c77d00"),
    ("#cfeee2", "#009e73"),
    ("#f6dcec", "#b0508a"),
    ("#e3f3fc", "#3a94c9"),
    ("#fbe0d3", "#d55e00"),
    ("#f7f3bf", "#a39a00"),
    ("#e6e0f5", "#6a51a3"),
];

pub(super) const ALONE: Pair = ("#ffffff", "#8a929c");
pub(super) const NO_GROUP: Pair = ("#f4f4f4", "#bbbbbb");
pub(super) const INK: &str = "#1d2329";
pub(super) const FAINT: &str = "#5b6570";
pub(super) const LINE: &str = "#8a929c";
pub(super) const PANEL: &str = "#f3f6f9";
pub(super) const PANEL_EDGE: &str = "#d5dde5";
pub(super) const SWITCH: &str = "#fffdf5";
pub(super) const SWITCH_EDGE: &str = "#b9b29b";
const GOOD: &str = "#00745a";
const WARN: &str = "#9a6300";
const BAD: &str = "#c0321f";

/// The colours of the n-th group with several members.
pub(super) fn group(index: usize) -> Pair {
    GROUPS.get(index % GROUPS.len()).copied().unwrap_or(ALONE)
}

/// The text colour of a tone.
pub(super) fn ink(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain | Tone::Strong | Tone::Name => INK,
        Tone::Dim => FAINT,
        Tone::Good => GOOD,
        Tone::Warn => WARN,
        Tone::Bad => BAD,
    }
}
