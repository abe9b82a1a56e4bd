//! The steps of a plan.

use iommu_group::{AcsBits, Plan, Purpose, Step};

use super::View;
use crate::show::{Line, Text, Tone};

impl View<'_> {
    /// The steps, numbered.
    pub(super) fn steps(&self, plan: &Plan) -> Text {
        let mut text = Text::new();
        text.push(Line::new().plain("  ").dim("steps"));
        for (step, number) in plan.steps.iter().zip(1..) {
            let line = Line::new()
                .dim(format_args!("  {number:>3}  "))
                .then(&self.step(step));
            text.push_wrapped(&line, self.width, 7);
        }
        text
    }

    fn step(&self, step: &Step) -> Line {
        match step {
            Step::Unplug { functions } => format!("unplug {}", self.list(functions)).into(),
            Step::KeepAwake { ports } => format!("keep {} awake", self.list(ports)).into(),
            Step::SetAcs {
                port,
                from,
                to,
                purpose,
            } => Line::new()
                .plain(format_args!(
                    "{}  ACS {from:04x} → {to:04x}  ",
                    self.names.of(*port)
                ))
                .toned(tone(*purpose), difference(*from, *to))
                .plain(format_args!(": {}", why(*purpose))),
            Step::SetEgress { port, .. } => format!(
                "{}  egress control: only the peers are reachable",
                self.names.of(*port)
            )
            .into(),
            Step::Remove { functions } => format!("remove {}", self.list(functions)).into(),
            Step::Rescan { below } => format!("rescan below {}", self.list(below)).into(),
            Step::CheckGroups { .. } => {
                "check the groups; undo if they are not as predicted".into()
            }
            Step::Replug { functions } => format!("replug {}", self.list(functions)).into(),
        }
    }
}

/// The bits that change: `CR off`, `RR CR on, DT off`.
fn difference(from: AcsBits, to: AcsBits) -> String {
    let (on, off) = (to & !from, from & !to);
    let mut words = Vec::new();
    if !on.is_empty() {
        words.push(format!("{on} on"));
    }
    if !off.is_empty() {
        words.push(format!("{off} off"));
    }
    words.join(", ")
}

fn why(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::CloseRoute => "requests no longer go directly",
        Purpose::OpenForRescan => "so that Linux joins the groups",
        Purpose::Restore => "as it was",
        Purpose::OpenRoute => "requests go directly across",
        Purpose::Asked => "as asked",
    }
}

fn tone(purpose: Purpose) -> Tone {
    match purpose {
        Purpose::CloseRoute | Purpose::Restore => Tone::Good,
        Purpose::OpenForRescan | Purpose::OpenRoute | Purpose::Asked => Tone::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_bits() {
        let bits = AcsBits::from_bits_retain;
        assert_eq!(difference(bits(0x1d), bits(0x15)), "CR off");
        assert_eq!(difference(bits(0x11), bits(0x1d)), "RR CR on");
        assert_eq!(difference(bits(0x1d), bits(0x55)), "DT on, CR off");
    }
}
