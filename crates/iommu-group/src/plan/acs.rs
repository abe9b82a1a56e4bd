//! Sets requested ACS control values and changes groups to match.

use std::collections::BTreeSet;

use super::planner::Planner;
use super::{Infeasible, Purpose, Refusal, Step};
use crate::config::{Acs, AcsBits};
use crate::{Function, Sbdf};

impl Planner<'_> {
    /// Sets the requested values. If a value changes how Linux groups the functions below, these are removed and found
    /// again. They are removed before the write if the value lets more requests pass, so that no active device is
    /// below.
    pub(super) fn set_acs(&mut self) -> Result<(), Refusal> {
        let asked = self.goals.acs.clone();
        let reasons: Vec<Infeasible> = asked
            .iter()
            .filter_map(|(port, bits)| self.unfit_word(*port, *bits))
            .collect();
        if !reasons.is_empty() {
            return Err(Refusal { reasons });
        }
        for (port, bits) in asked {
            if self.control(port) == bits {
                continue;
            }
            let children: BTreeSet<Sbdf> = self
                .topology
                .children(port)
                .filter(|child| !child.is_virtual())
                .map(Function::sbdf)
                .collect();
            let mut trial = self.model.clone();
            trial.set_acs_control(port, bits);
            if trial.readded(&children).groups() == self.model.groups() {
                self.set_acs_word(port, bits, Purpose::Asked);
                continue;
            }
            self.step(Step::Remove {
                functions: children,
            });
            self.set_acs_word(port, bits, Purpose::Asked);
            self.step(Step::Rescan {
                below: BTreeSet::from([port]),
            });
            self.check_groups();
        }
        Ok(())
    }

    fn unfit_word(&self, port: Sbdf, bits: AcsBits) -> Option<Infeasible> {
        let function = self.topology.get(port)?;
        if !function.port_type().is_downstream() {
            return Some(Infeasible::NotAPort { function: port });
        }
        match function.acs() {
            Acs::Absent | Acs::Unknown(_) => Some(Infeasible::NoAcs { port }),
            Acs::Known(acs) => {
                // The capability has one bit for all enhanced controls.
                let enhanced = if acs.enhanced() {
                    AcsBits::IB | AcsBits::DSP_MT | AcsBits::USP_MT | AcsBits::UR
                } else {
                    AcsBits::NONE
                };
                let missing = bits & !(acs.capability | enhanced);
                (!missing.is_empty()).then_some(Infeasible::NotImplemented {
                    port,
                    bits: missing,
                })
            }
        }
    }
}
