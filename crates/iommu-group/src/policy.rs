//! The operator's policy: built-in rules and the rules of a policy file.
//!
//! A rule says what one device may do in a P2P domain. `share` applies the rules to all members of a domain. The file
//! is TOML. The first rule that matches decides, and the built-in rules come last:
//!
//! ```toml
//! [[device]]
//! vendor = "10de"
//! device = "2342"
//! p2p = "initiator-only"
//! why = "its large BAR is memory of the processor's node"
//! ```
//!
//! The file also names the functions whose exposure the operator accepts: functions that virtual machines reach without
//! the IOMMU, or that are in a virtual machine and that other devices reach in this way:
//!
//! ```toml
//! [[expose]]
//! function = "0000:04:00.0"
//! why = "its data is encrypted, and its switch has no ACS"
//! ```
//!
//! The file can also accept that the kernel assigns devices whose interrupts are not isolated:
//!
//! ```toml
//! [unsafe-interrupts]
//! why = "one tenant, and no interrupt remapping"
//! ```

mod consent;
#[cfg(feature = "policy-file")]
mod file;
mod origin;
mod quirks;
mod rule;
mod share;

use std::collections::BTreeMap;
use std::fmt;

use crate::Sbdf;

pub use consent::Consent;
#[cfg(feature = "policy-file")]
pub use file::PolicyError;
pub use origin::{Location, Origin};
use quirks::QUIRKS;
pub(crate) use rule::Identity;
pub use rule::Role;
use rule::Rule;
pub use share::PolicyReason;
pub(crate) use share::{forbidding, share};

/// Rules in the order in which they are tried, and accepted exposures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    exposed: BTreeMap<Sbdf, Consent>,
    unsafe_interrupts: Option<Consent>,
}

/// The policy's rule for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyMatch {
    /// The role of the device.
    pub role: Role,
    /// The reason; empty if no rule matches the device.
    pub why: String,
    /// The origin of the rule.
    pub origin: Origin,
}

impl fmt::Display for PolicyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.origin)
    }
}

impl Policy {
    /// Parses the text of a policy file; `name` is the file's name in messages.
    ///
    /// # Errors
    /// [`PolicyError`] names the line of the text and the key.
    #[cfg(feature = "policy-file")]
    pub fn parse(name: &str, text: &str) -> Result<Self, PolicyError> {
        file::parse(name, text)
    }

    /// Accepts the exposure of these functions. An entry of the file keeps its reason.
    pub fn expose(&mut self, functions: impl IntoIterator<Item = Sbdf>) {
        for function in functions {
            self.exposed.entry(function).or_insert(Consent::Named);
        }
    }

    /// The consent to the exposure of a function; `None` if the operator does not accept it.
    #[must_use]
    pub fn consent(&self, function: Sbdf) -> Option<&Consent> {
        self.exposed.get(&function)
    }

    /// The consent to interrupts that are not isolated, if it is given.
    pub fn unsafe_interrupts(&self) -> Option<&Consent> {
        self.unsafe_interrupts.as_ref()
    }

    /// The functions whose exposure is accepted.
    pub fn exposed(&self) -> impl Iterator<Item = Sbdf> {
        self.exposed.keys().copied()
    }

    /// The rule for a device.
    pub(crate) fn find(&self, identity: &Identity) -> PolicyMatch {
        let own = self.rules.iter().find(|rule| rule.fits(identity));
        if let Some(rule) = own {
            return PolicyMatch {
                role: rule.role,
                why: rule.why.clone(),
                origin: Origin::File(rule.location.clone()),
            };
        }
        let quirk = QUIRKS.iter().find(|quirk| quirk.fits(identity));
        quirk.map_or_else(PolicyMatch::default, |quirk| PolicyMatch {
            role: quirk.role,
            why: quirk.why.to_owned(),
            origin: Origin::BuiltIn,
        })
    }
}

impl Default for PolicyMatch {
    /// The default for a device that no rule matches.
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
        let found = Policy::default().find(&identity(0x1b36, 0x0010, 0x01_0802));
        assert_eq!(found, PolicyMatch::default());
        assert_eq!(found.role, Role::Peer);
    }

    #[test]
    fn the_operators_rules_come_before_the_table_and_say_where_they_stand() {
        let gpu = identity(0x10de, 0x2342, 0x03_0200);
        let found = Policy::default().find(&gpu);
        assert_eq!(found.role, Role::InitiatorOnly);
        assert!(found.to_string().ends_with("(built-in rule)"), "{found}");
        let text = "[[device]]\nvendor = '10de'\ndevice = '2342'\np2p = 'peer'\nwhy = 'measured'";
        let found = parse(text).find(&gpu);
        assert_eq!(found.role, Role::Peer);
        assert_eq!(found.to_string(), "measured (rule at p.toml:1)");
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
        let found = |device| policy.find(&identity(0x1b36, device, 0));
        assert_eq!(found(0x10).role, Role::TargetOnly);
        assert_eq!(found(0x11).role, Role::Never);
        assert_eq!(found(0x11).to_string(), "all (rule at p.toml:7)");
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
        let found = Policy::default().find(&igd);
        assert_eq!(found.role, Role::Never);
        assert!(found.why.contains("system memory"), "{found:?}");
        igd.integrated = false;
        assert_eq!(Policy::default().find(&igd).role, Role::Peer);
    }
}
