//! What the rules mean for the members of one domain.

use iommu_group::Sbdf;
use thiserror::Error;

use super::{Role, Ruling};

/// Why devices cannot share a domain as the policy wants it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyReason {
    /// It must not take part at all.
    #[error("{sbdf} must not do P2P: {ruling}\n       leave p2p=on out for it")]
    Never {
        /// The device.
        sbdf: Sbdf,
        /// What is said of it.
        ruling: Ruling,
    },
    /// A device must not reach BARs that its domain has to map.
    #[error(
        "{target} may only be a target: {ruling}\n       \
         the IOMMU cannot keep it from the BARs of {other}, which it translates for the whole domain\n       \
         leave {other} out of the VM, or p2p=on out for all of the group"
    )]
    Reaches {
        /// The device that may only be a target.
        target: Sbdf,
        /// Whose BAR would be in its reach.
        other: Sbdf,
        /// What is said of the target.
        ruling: Ruling,
    },
    /// A device reaches another against the rules, and the IOMMU never sees it.
    #[error(
        "{bound} may only {}: {ruling}\n       \
         the IOMMU cannot enforce that: the switch carries requests from {from} to {to} without it\n       \
         p2pctl plan --join {from} {to} --route iommu   says what it takes to change that\n       \
         or leave p2p=on out",
        verb(ruling.role)
    )]
    Past {
        /// The device with the rule: one of the other two.
        bound: Sbdf,
        /// Who sends.
        from: Sbdf,
        /// Who is reached.
        to: Sbdf,
        /// What is said of the first.
        ruling: Ruling,
    },
    /// All BARs of a domain are hidden.
    #[error(
        "{sbdf} may only initiate: {ruling}\n       nothing in its domain may be reached: leave p2p=on out"
    )]
    NoTarget {
        /// One of the devices; all are like it.
        sbdf: Sbdf,
        /// What is said of it.
        ruling: Ruling,
    },
}

fn verb(role: Role) -> &'static str {
    match role {
        Role::Peer => "initiate and be a target",
        Role::TargetOnly => "be a target",
        Role::InitiatorOnly => "initiate",
        Role::Never => "stay alone",
    }
}

/// A member of a domain.
type Member<'a> = (Sbdf, &'a Ruling);

/// Whose rule forbids requests from one member to another.
fn forbids<'a>(from: Member<'a>, to: Member<'a>) -> Option<Member<'a>> {
    [(from, Role::TargetOnly), (to, Role::InitiatorOnly)]
        .into_iter()
        .find_map(|(member, unfit)| (member.1.role == unfit).then_some(member))
}

/// Decides for each member of a domain whether its BARs are shown to the others, in the order of
/// `members`. `direct` says between which the hardware carries requests past the IOMMU.
///
/// A domain is one IOMMU context, in which all members reach all that is mapped. So a device that may only
/// initiate has no BAR mapped; and one that may only be a target is alone with its BAR in there, which is
/// possible if its only partner is content to initiate. What the IOMMU never sees it cannot forbid.
///
/// # Errors
/// Every reason there is.
pub(crate) fn share(
    members: &[Member<'_>],
    direct: impl Fn(Sbdf, Sbdf) -> bool,
) -> Result<Vec<bool>, Vec<PolicyReason>> {
    let mut reasons = Vec::new();
    for (sbdf, ruling) in members.iter().copied() {
        if ruling.role == Role::Never {
            let ruling = ruling.clone();
            reasons.push(PolicyReason::Never { sbdf, ruling });
        }
    }
    let count = |role| members.iter().filter(|(_, r)| r.role == role).count();
    // One peer gives up being a target; of two, each would lose the other.
    let peers_show = count(Role::TargetOnly) == 0 || count(Role::Peer) > 1;
    let shows = |role: Role| match role {
        Role::Peer => peers_show,
        Role::TargetOnly => true,
        Role::InitiatorOnly | Role::Never => false,
    };
    let shown: Vec<bool> = members.iter().map(|(_, r)| shows(r.role)).collect();
    for from in members.iter().copied() {
        let others = members.iter().copied().zip(&shown);
        for (to, shown) in others.filter(|(to, _)| to.0 != from.0) {
            let Some((bound, ruling)) = forbids(from, to) else {
                continue;
            };
            let ruling = ruling.clone();
            if direct(from.0, to.0) {
                reasons.push(PolicyReason::Past {
                    bound,
                    from: from.0,
                    to: to.0,
                    ruling,
                });
            } else if *shown {
                reasons.push(PolicyReason::Reaches {
                    target: from.0,
                    other: to.0,
                    ruling,
                });
            }
        }
    }
    if let [(sbdf, ruling), _, ..] = members
        && reasons.is_empty()
        && !shown.contains(&true)
    {
        reasons.push(PolicyReason::NoTarget {
            sbdf: *sbdf,
            ruling: (*ruling).clone(),
        });
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::*;

    fn sbdf(n: usize) -> Sbdf {
        format!("{n:02}:00.0").parse().unwrap()
    }

    /// Members 01:00.0, 02:00.0, … of these roles.
    fn shared(
        roles: &[Role],
        direct: impl Fn(Sbdf, Sbdf) -> bool,
    ) -> Result<Vec<bool>, Vec<PolicyReason>> {
        let of = |role: &Role| Ruling {
            role: *role,
            why: "because".to_owned(),
            origin: Origin::BuiltIn,
        };
        let rulings: Vec<Ruling> = roles.iter().map(of).collect();
        let members: Vec<_> = (1..).map(sbdf).zip(&rulings).collect();
        share(&members, direct)
    }

    fn translated(roles: &[Role]) -> Result<Vec<bool>, Vec<PolicyReason>> {
        shared(roles, |_, _| false)
    }

    use Role::{InitiatorOnly, Never, Peer, TargetOnly};

    #[test]
    fn peers_show_their_bars_and_initiators_do_not() {
        assert_eq!(
            translated(&[Peer, InitiatorOnly, Peer]),
            Ok(vec![true, false, true])
        );
    }

    #[test]
    fn never_is_refused_by_name_with_the_rule() {
        let reasons = translated(&[Peer, Never]).unwrap_err();
        assert_eq!(reasons.len(), 1);
        let text = reasons[0].to_string();
        assert!(
            text.starts_with("0000:02:00.0 must not do P2P: because (built-in rule)\n"),
            "{text}"
        );
    }

    #[test]
    fn a_target_is_the_only_one_with_a_bar_in_its_domain() {
        assert_eq!(translated(&[TargetOnly, Peer]), Ok(vec![true, false]));
        assert_eq!(
            translated(&[TargetOnly, InitiatorOnly, Peer]),
            Ok(vec![true, false, false])
        );
        let two_peers = translated(&[TargetOnly, Peer, Peer]).unwrap_err();
        assert_eq!(two_peers.len(), 2);
        let two_targets = translated(&[TargetOnly, TargetOnly]).unwrap_err();
        assert_eq!(two_targets.len(), 2);
        let text = two_targets[0].to_string();
        for word in ["0000:01:00.0 may only be a target", "0000:02:00.0"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn what_a_switch_carries_past_the_iommu_cannot_be_forbidden() {
        let all = |_, _| true;
        assert_eq!(shared(&[Peer, Peer], all), Ok(vec![true, true]));
        let reasons = shared(&[Peer, InitiatorOnly], all).unwrap_err();
        assert_eq!(reasons.len(), 1);
        let text = reasons[0].to_string();
        for word in [
            "0000:02:00.0 may only initiate: because",
            "from 0000:01:00.0 to 0000:02:00.0",
        ] {
            assert!(text.contains(word), "{text}");
        }
        let reasons = shared(&[TargetOnly, Peer], all).unwrap_err();
        let text = reasons[0].to_string();
        assert!(text.contains("0000:01:00.0 may only be a target"), "{text}");
        // The allowed direction may be direct.
        let to_target = |_, to| to == sbdf(1);
        assert_eq!(
            shared(&[TargetOnly, Peer], to_target),
            Ok(vec![true, false])
        );
    }

    #[test]
    fn a_domain_without_a_target_is_refused_and_one_device_waits() {
        let reasons = translated(&[InitiatorOnly, InitiatorOnly]).unwrap_err();
        assert!(matches!(reasons[..], [PolicyReason::NoTarget { .. }]));
        assert_eq!(translated(&[InitiatorOnly]), Ok(vec![false]));
    }
}
