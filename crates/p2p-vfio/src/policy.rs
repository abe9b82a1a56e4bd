//! Which devices may take part in peer-to-peer, and how: the quirk table and the operator's rules.
//!
//! A pure decider: [`Policy::ruling`] says what one device may do, [`share`] what that means for the
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

mod quirks;
mod rule;

use iommu_group::Sbdf;
use thiserror::Error;

use quirks::QUIRKS;
use rule::Rule;
pub use rule::{Identity, PolicyError, Role};

/// Rules, in the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// What the policy says of a device, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// What it may do.
    pub role: Role,
    /// The reason; empty for a device that no rule names.
    pub why: String,
}

impl Policy {
    /// From the text of a policy file.
    ///
    /// # Errors
    /// [`PolicyError`] names the rule or the place in the text.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        rule::parse(text).map(|rules| Self { rules })
    }

    /// What a device may do.
    pub fn ruling(&self, identity: &Identity) -> Ruling {
        let own = self.rules.iter().find(|rule| rule.fits(identity));
        if let Some(rule) = own {
            return Ruling {
                role: rule.role,
                why: rule.why.clone(),
            };
        }
        let quirk = QUIRKS.iter().find(|quirk| quirk.fits(identity));
        quirk.map_or(
            Ruling {
                role: Role::Peer,
                why: String::new(),
            },
            |quirk| Ruling {
                role: quirk.role,
                why: quirk.why.to_owned(),
            },
        )
    }
}

/// Why devices cannot share a domain as the policy wants it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyReason {
    /// It must not take part at all.
    #[error("{sbdf} cannot do P2P: {why}\n       leave p2p=on out for it")]
    Never {
        /// The device.
        sbdf: Sbdf,
        /// What the rule says.
        why: String,
    },
    /// A device must not reach BARs that its domain would map.
    #[error(
        "{target} may only be a target ({why}), but the IOMMU cannot keep it from the BAR of {other}: \
         a domain is all-to-all\n       give {target} a domain with one initiator only"
    )]
    Reaches {
        /// The device that may only be a target.
        target: Sbdf,
        /// Whose BAR would be in its reach.
        other: Sbdf,
        /// What the rule says.
        why: String,
    },
}

/// Decides for each member of a domain whether its BARs are shown to the others, in the order of
/// `members`.
///
/// A domain is one IOMMU context, in which all members reach all that is mapped. So a device that may only
/// initiate has no BAR mapped; and one that may only be a target is alone with its BAR in there, which is
/// possible if its only partner is content to initiate.
///
/// # Errors
/// Every reason there is.
pub fn share(members: &[(Sbdf, Ruling)]) -> Result<Vec<bool>, Vec<PolicyReason>> {
    let mut reasons = Vec::new();
    for (sbdf, ruling) in members {
        if ruling.role == Role::Never {
            let (sbdf, why) = (*sbdf, ruling.why.clone());
            reasons.push(PolicyReason::Never { sbdf, why });
        }
    }
    let target = members.iter().find(|(_, r)| r.role == Role::TargetOnly);
    if let Some((target, ruling)) = target {
        let peers = members.iter().filter(|(_, r)| r.role == Role::Peer);
        let peers: Vec<Sbdf> = peers.map(|(sbdf, _)| *sbdf).collect();
        let targets = members.iter().filter(|(_, r)| r.role == Role::TargetOnly);
        // One peer gives up being a target; of two, each would lose the other.
        let lose = if peers.len() > 1 { peers } else { Vec::new() };
        let others = targets.map(|(sbdf, _)| *sbdf).chain(lose);
        let reaches = |other| PolicyReason::Reaches {
            target: *target,
            other,
            why: ruling.why.clone(),
        };
        reasons.extend(others.filter(|other| other != target).map(reaches));
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let shows = |role: Role| match role {
        Role::Peer => target.is_none(),
        Role::TargetOnly => true,
        Role::InitiatorOnly | Role::Never => false,
    };
    Ok(members.iter().map(|(_, r)| shows(r.role)).collect())
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

    fn member(n: u8, role: Role) -> (Sbdf, Ruling) {
        let why = "because".to_owned();
        (Sbdf::new(0, n, 0, 0).unwrap(), Ruling { role, why })
    }

    #[test]
    fn devices_without_a_rule_are_peers() {
        let ruling = Policy::default().ruling(&identity(0x1b36, 0x0010, 0x01_0802));
        assert_eq!((ruling.role, ruling.why.as_str()), (Role::Peer, ""));
    }

    #[test]
    fn the_operators_rules_come_before_the_table() {
        let gpu = identity(0x10de, 0x2342, 0x03_0200);
        assert_eq!(Policy::default().ruling(&gpu).role, Role::InitiatorOnly);
        let text = "[[device]]\nvendor = '10de'\ndevice = '2342'\np2p = 'peer'\nwhy = 'measured'";
        let ruling = Policy::parse(text).unwrap().ruling(&gpu);
        assert_eq!((ruling.role, ruling.why.as_str()), (Role::Peer, "measured"));
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
        let policy = Policy::parse(text).unwrap();
        let role = |device| policy.ruling(&identity(0x1b36, device, 0)).role;
        assert_eq!((role(0x10), role(0x11)), (Role::TargetOnly, Role::Never));
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

    #[test]
    fn peers_show_their_bars_and_initiators_do_not() {
        let members = [
            member(1, Role::Peer),
            member(2, Role::InitiatorOnly),
            member(3, Role::Peer),
        ];
        assert_eq!(share(&members), Ok(vec![true, false, true]));
    }

    #[test]
    fn never_is_refused_by_name() {
        let members = [member(1, Role::Peer), member(2, Role::Never)];
        let reasons = share(&members).unwrap_err();
        let text = reasons[0].to_string();
        assert!(
            text.contains("0000:02:00.0") && text.contains("because"),
            "{text}"
        );
    }

    #[test]
    fn a_target_is_the_only_one_with_a_bar_in_its_domain() {
        let target = member(1, Role::TargetOnly);
        let one = [target.clone(), member(2, Role::Peer)];
        assert_eq!(share(&one), Ok(vec![true, false]));
        let initiators = [
            target.clone(),
            member(2, Role::InitiatorOnly),
            member(3, Role::Peer),
        ];
        assert_eq!(share(&initiators), Ok(vec![true, false, false]));
        let two_peers = [target.clone(), member(2, Role::Peer), member(3, Role::Peer)];
        assert_eq!(share(&two_peers).unwrap_err().len(), 2);
        let two_targets = [target, member(2, Role::TargetOnly)];
        let reasons = share(&two_targets).unwrap_err();
        assert!(reasons[0].to_string().contains("0000:02:00.0"));
    }
}
