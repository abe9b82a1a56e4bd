//! Which devices may take part in peer-to-peer, and how: the quirk table and the operator's rules.
//!
//! A pure decider: [`Policy::ruling`] says what one device may do, [`share()`] what that means for the
//! members of one domain. Its file is TOML, the first rule that fits decides, and the built-in table comes
//! after it:
//!
//! ```toml
//! [[device]]
//! vendor = "10de"
//! device = "2342"
//! p2p = "initiator-only"
//! why = "its large BAR is memory of the processor's node"
//! ```
//!
//! It also names the devices of which the operator accepts that virtual machines reach them without the IOMMU, or that
//! others reach them so in a virtual machine:
//!
//! ```toml
//! [[expose]]
//! function = "0000:04:00.0"
//! why = "its data is encrypted, and its switch has no ACS"
//! ```
//!
//! And it may accept that the kernel assigns devices whose interrupts are not isolated:
//!
//! ```toml
//! [unsafe-interrupts]
//! why = "one tenant, and no interrupt remapping"
//! ```

mod expose;
mod origin;
mod quirks;
mod rule;
mod share;

use std::collections::BTreeMap;
use std::fmt;

use iommu_group::Sbdf;

pub use expose::Consent;
pub use origin::{Origin, Place};
use quirks::QUIRKS;
pub(crate) use rule::Identity;
use rule::Rule;
pub use rule::{PolicyError, Role};
pub use share::PolicyReason;
pub(crate) use share::share;

/// Rules, in the order in which they are tried, and accepted exposures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    exposed: BTreeMap<Sbdf, Consent>,
    unsafe_interrupts: Option<Consent>,
}

/// What the policy says of a device, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// What it may do.
    pub role: Role,
    /// The reason; empty for a device that no rule names.
    pub why: String,
    /// Where the rule stands.
    pub origin: Origin,
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.origin)
    }
}

impl Policy {
    /// From the text of a policy file; `name` is what messages call it.
    ///
    /// # Errors
    /// [`PolicyError`] names the line of the text and the key.
    pub fn parse(name: &str, text: &str) -> Result<Self, PolicyError> {
        rule::parse(name, text)
    }

    /// Accepts that these are reachable without the IOMMU. An entry of the file keeps its reason.
    pub fn expose(&mut self, functions: impl IntoIterator<Item = Sbdf>) {
        for function in functions {
            self.exposed.entry(function).or_insert(Consent::Named);
        }
    }

    /// Who accepts that a function is reachable without the IOMMU, if anybody does.
    pub fn consent(&self, function: Sbdf) -> Option<&Consent> {
        self.exposed.get(&function)
    }

    /// Who accepts that interrupts are not isolated, if anybody does.
    pub fn unsafe_interrupts(&self) -> Option<&Consent> {
        self.unsafe_interrupts.as_ref()
    }

    /// The functions whose exposure is accepted.
    pub fn exposed(&self) -> impl Iterator<Item = Sbdf> {
        self.exposed.keys().copied()
    }

    /// What a device may do.
    pub(crate) fn ruling(&self, identity: &Identity) -> Ruling {
        let own = self.rules.iter().find(|rule| rule.fits(identity));
        if let Some(rule) = own {
            return Ruling {
                role: rule.role,
                why: rule.why.clone(),
                origin: Origin::File(rule.place.clone()),
            };
        }
        let quirk = QUIRKS.iter().find(|quirk| quirk.fits(identity));
        quirk.map_or_else(Ruling::default, |quirk| Ruling {
            role: quirk.role,
            why: quirk.why.to_owned(),
            origin: Origin::BuiltIn,
        })
    }
}

impl Default for Ruling {
    /// Of a device that no rule names.
    fn default() -> Self {
        Self {
            role: Role::Peer,
            why: String::new(),
            origin: Origin::NoRule,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(vendor: u16, device: u16, class: u32) -> Identity {
        Identity {
            vendor,
            device,
            class,
            integrated: false,
        }
    }

    fn parse(text: &str) -> Policy {
        Policy::parse("p.toml", text).unwrap()
    }

    #[test]
    fn devices_without_a_rule_are_peers() {
        let ruling = Policy::default().ruling(&identity(0x1b36, 0x0010, 0x01_0802));
        assert_eq!(ruling, Ruling::default());
        assert_eq!(ruling.role, Role::Peer);
    }

    #[test]
    fn the_operators_rules_come_before_the_table_and_say_where_they_stand() {
        let gpu = identity(0x10de, 0x2342, 0x03_0200);
        let ruling = Policy::default().ruling(&gpu);
        assert_eq!(ruling.role, Role::InitiatorOnly);
        assert!(ruling.to_string().ends_with("(built-in rule)"), "{ruling}");
        let text = "[[device]]\nvendor = '10de'\ndevice = '2342'\np2p = 'peer'\nwhy = 'measured'";
        let ruling = parse(text).ruling(&gpu);
        assert_eq!(ruling.role, Role::Peer);
        assert_eq!(ruling.to_string(), "measured (rule at p.toml:1)");
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let text = "
            [[device]]
            vendor = '0x1b36'
            device = '0x0010'
            p2p = 'target-only'
            why = 'one'
            [[device]]
            vendor = '1b36'
            p2p = 'never'
            why = 'all'
        ";
        let policy = parse(text);
        let ruling = |device| policy.ruling(&identity(0x1b36, device, 0));
        assert_eq!(ruling(0x10).role, Role::TargetOnly);
        assert_eq!(ruling(0x11).role, Role::Never);
        assert_eq!(ruling(0x11).to_string(), "all (rule at p.toml:7)");
    }

    #[test]
    fn exposures_are_accepted_by_the_file_or_by_name() {
        let at = |text: &str| text.parse::<Sbdf>().unwrap();
        let text = "[[expose]]\nfunction = '04:00.0'\nwhy = 'trusted'";
        let mut policy = parse(text);
        policy.expose([at("04:00.0"), at("05:00.0")]);
        let said = |text: &str| policy.consent(at(text)).map(ToString::to_string);
        assert_eq!(
            said("0000:04:00.0").as_deref(),
            Some("accepted: trusted (rule at p.toml:1)")
        );
        assert_eq!(said("0000:05:00.0").as_deref(), Some("accepted by name"));
        assert_eq!(said("0000:06:00.0"), None);
    }

    #[test]
    fn interrupts_that_are_not_isolated_are_accepted_by_the_file() {
        let policy = parse("[unsafe-interrupts]\nwhy = 'one tenant'");
        let said = policy.unsafe_interrupts().map(ToString::to_string);
        let expected = "accepted: one tenant (rule at p.toml:1)";
        assert_eq!(said.as_deref(), Some(expected));
        assert_eq!(Policy::default().unsafe_interrupts(), None);
    }

    #[test]
    fn graphics_in_the_processor_have_bars_of_system_memory() {
        let mut igd = identity(0x8086, 0x9a49, 0x03_0000);
        igd.integrated = true;
        let ruling = Policy::default().ruling(&igd);
        assert_eq!(ruling.role, Role::Never);
        assert!(ruling.why.contains("system memory"), "{ruling:?}");
        igd.integrated = false;
        assert_eq!(Policy::default().ruling(&igd).role, Role::Peer);
    }
}
