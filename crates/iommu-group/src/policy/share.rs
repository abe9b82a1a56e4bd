//! Applies the rules to the members of one domain.

use thiserror::Error;

use super::{PolicyMatch, Role};
use crate::Sbdf;

/// A reason why the policy forbids a domain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyReason {
    /// A member must not take part in peer-to-peer.
    #[error("{sbdf} must not do P2P: {rule}\n       leave p2p=on out for it")]
    Never {
        /// The device.
        sbdf: Sbdf,
        /// The rule of the device.
        rule: PolicyMatch,
    },
    /// A device that may only be a target would reach BARs that its domain has to map.
    #[error(
        "{target} may only be a target: {rule}\n       \
         the IOMMU cannot keep it from the BARs of {other}, which it translates for the whole domain\n       \
         leave {other} out of the VM, or p2p=on out for all of the group"
    )]
    Reaches {
        /// The device that may only be a target.
        target: Sbdf,
        /// The device whose BAR it would reach.
        other: Sbdf,
        /// The rule of the target.
        rule: PolicyMatch,
    },
    /// A request that a rule forbids does not pass through the IOMMU, so the rule cannot be enforced.
    #[error(
        "{bound} may only {}: {rule}\n       \
         the IOMMU cannot enforce that: the switch carries requests from {from} to {to} without it\n       \
         p2pctl plan --join {from} {to} --route iommu   says what it takes to change that\n       \
         or leave p2p=on out",
        verb(rule.role)
    )]
    Past {
        /// The device with the rule: `from` or `to`.
        bound: Sbdf,
        /// The initiator.
        from: Sbdf,
        /// The target.
        to: Sbdf,
        /// The rule of the device.
        rule: PolicyMatch,
    },
    /// All BARs of the domain are hidden.
    #[error(
        "{sbdf} may only initiate: {rule}\n       nothing in its domain may be reached: leave p2p=on out"
    )]
    NoTarget {
        /// One of the devices. The others have the same role.
        sbdf: Sbdf,
        /// The rule of the device.
        rule: PolicyMatch,
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
type Member<'a> = (Sbdf, &'a PolicyMatch);

/// The members whose rules forbid requests from one member to another.
pub(crate) fn forbidding<'a>(from: Member<'a>, to: Member<'a>) -> impl Iterator<Item = Member<'a>> {
    [(from, Role::TargetOnly), (to, Role::InitiatorOnly)]
        .into_iter()
        .filter(|(member, unfit)| member.1.role == *unfit || member.1.role == Role::Never)
        .map(|(member, _)| member)
}

/// Decides for each member of a domain whether its BARs are shown to the others, in the order of `members`. `direct`
/// returns whether the hardware routes requests from one member to another without the IOMMU.
///
/// A domain is one IOMMU context, in which every member reaches everything that is mapped. Therefore a device that may
/// only initiate has no BAR mapped. A device that may only be a target is the only one with a mapped BAR, which is
/// possible if its peers need not be targets. The IOMMU cannot enforce a rule on requests that do not pass through it.
///
/// # Errors
/// All reasons.
pub(crate) fn share(
    members: &[Member<'_>],
    direct: impl Fn(Sbdf, Sbdf) -> bool,
) -> Result<Vec<bool>, Vec<PolicyReason>> {
    let mut reasons = Vec::new();
    for (sbdf, rule) in members.iter().copied() {
        if rule.role == Role::Never {
            let rule = rule.clone();
            reasons.push(PolicyReason::Never { sbdf, rule });
        }
    }
    let count = |role| members.iter().filter(|(_, r)| r.role == role).count();
    // A single peer can give up being a target. With two peers, each would lose access to the other.
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
            // A member with the role `Never` already has a reason.
            let mut bound = forbidding(from, to).filter(|(_, rule)| rule.role != Role::Never);
            let Some((bound, rule)) = bound.next() else {
                continue;
            };
            let rule = rule.clone();
            if direct(from.0, to.0) {
                reasons.push(PolicyReason::Past {
                    bound,
                    from: from.0,
                    to: to.0,
                    rule,
                });
            } else if *shown {
                reasons.push(PolicyReason::Reaches {
                    target: from.0,
                    other: to.0,
                    rule,
                });
            }
        }
    }
    if let [(sbdf, rule), _, ..] = members
        && reasons.is_empty()
        && !shown.contains(&true)
    {
        reasons.push(PolicyReason::NoTarget {
            sbdf: *sbdf,
            rule: (*rule).clone(),
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
        let of = |role: &Role| PolicyMatch {
            role: *role,
            why: "because".to_owned(),
            origin: Origin::BuiltIn,
        };
        let rules: Vec<PolicyMatch> = roles.iter().map(of).collect();
        let members: Vec<_> = (1..).map(sbdf).zip(&rules).collect();
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
