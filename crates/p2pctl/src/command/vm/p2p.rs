//! `p2pctl vm p2p`: which devices can reach each other.

use vmm_api::{
    Client, P2pBackend, P2pDomain, P2pExposure, P2pInfo, P2pMember, P2pRoute, P2pVerdict,
    UNSHARED_TRANSFERS,
};

use super::CallError;
use crate::answer::Answer;
use crate::describe::size;
use crate::show::{Line, Table, Text, Tone};

pub(super) fn run(client: &Client, json: bool, width: usize) -> Result<Answer, CallError> {
    let info = client.p2p()?;
    Ok(Answer::either(json, &info, || show(&info, width))?)
}

fn show(info: &P2pInfo, width: usize) -> Text {
    let mut text = Text::new();
    if info.domains.is_empty() {
        text.push(Line::new().plain("no device has P2P: it is off by default (p2p=on)"));
    }
    for domain in &info.domains {
        text.extend(members(domain, width));
        text.blank();
    }
    for route in &info.routes {
        text.push(line(route));
    }
    if !info.others.is_empty() {
        let others = info.others.join(" ");
        text.push(Line::new().plain(format_args!("guest memory only: {others}")));
    }
    for exposure in &info.exposures {
        text.push_wrapped(&exposed(exposure), width, 2);
    }
    if info.unshared_transfers_fail_silently {
        let warning = Line::new().toned(Tone::Bad, "warning").plain(": ");
        text.push_wrapped(&warning.plain(UNSHARED_TRANSFERS), width, 4);
    }
    if let Some(P2pBackend { interface, reason }) = &info.backend {
        let by = format_args!("assigned by {interface}, {reason}");
        text.push(Line::new().plain(by));
    }
    text
}

fn members(domain: &P2pDomain, width: usize) -> Text {
    let mut text = Text::new();
    let name = domain.name.as_deref().unwrap_or("without a name");
    text.push(Line::new().strong(format_args!("domain {name}")));
    let mut table = Table::new(["device", "on the host", "group", "in the guest", "windows"]);
    for member in &domain.members {
        table.row(row(member));
    }
    text.extend(table.render(width));
    text
}

fn row(member: &P2pMember) -> Vec<Line> {
    let windows = member.windows.iter();
    let windows: Vec<String> = windows
        .map(|window| format!("{}:{}@{:#x}", window.bar, size(window.size), window.base))
        .collect();
    [
        member.id.clone(),
        member.host.clone(),
        member.group.to_string(),
        member.bdf.clone().unwrap_or_else(|| "–".to_owned()),
        windows.join(" "),
    ]
    .map(|cell| Line::new().plain(cell))
    .into()
}

fn line(route: &P2pRoute) -> Line {
    let pair = Line::new().plain(format_args!("{} → {}: ", route.from, route.to));
    let way = route.route.as_deref().unwrap_or("no route");
    let reasons = route.reasons.join("; ");
    match route.verdict {
        P2pVerdict::Allowed => pair
            .toned(Tone::Good, "allowed")
            .plain(format_args!(", {way}")),
        P2pVerdict::Apart => pair.plain(format_args!("isolated, {reasons}")),
        P2pVerdict::Denied => pair
            .toned(Tone::Bad, "denied")
            .plain(format_args!(", {reasons}")),
    }
}

fn exposed(exposure: &P2pExposure) -> Line {
    let P2pExposure {
        id, function, to, ..
    } = exposure;
    let may = if exposure.certain { "is" } else { "may be" };
    let line = Line::new().plain(format_args!(
        "{function} {may} reachable without the IOMMU from {}, through {} (device {id}): ",
        to.join(" "),
        exposure.through.join(" ")
    ));
    match (&exposure.accepted, exposure.certain) {
        (Some(words), _) => line.toned(Tone::Warn, words),
        (None, true) => line.toned(Tone::Bad, "not accepted"),
        (None, false) => line.plain("depends on the root complex or the device"),
    }
}

#[cfg(test)]
mod tests {
    use vmm_api::P2pInterface;

    use super::*;

    #[test]
    fn routes_say_the_answer_first() {
        let route = |verdict, reasons: &[&str]| P2pRoute {
            from: "a".into(),
            to: "b".into(),
            verdict,
            route: Some("host-bridge".into()),
            reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
        };
        let text = |route| {
            let mut text = Text::new();
            text.push(line(&route));
            text.render(false)
        };
        let allowed = text(route(P2pVerdict::Allowed, &[]));
        assert_eq!(allowed, "a → b: allowed, host-bridge\n");
        let denied = text(route(P2pVerdict::Denied, &["two groups", "no route"]));
        assert_eq!(denied, "a → b: denied, two groups; no route\n");
    }

    #[test]
    fn exposures_say_who_is_reached_and_who_accepts_that() {
        let text = |certain, accepted: Option<&str>| {
            let mut text = Text::new();
            text.push(exposed(&P2pExposure {
                id: "nvme0".into(),
                function: "0000:04:00.0".into(),
                to: vec!["0000:03:00.0".into()],
                through: vec!["0000:02:00.0".into()],
                certain,
                accepted: accepted.map(str::to_owned),
            }));
            text.render(false)
        };
        assert_eq!(
            text(true, Some("accepted by name")),
            "0000:04:00.0 is reachable without the IOMMU from 0000:03:00.0, through 0000:02:00.0 (device nvme0): accepted \
             by name\n"
        );
        assert!(text(true, None).ends_with(": not accepted\n"));
        assert!(text(false, None).contains("may be reachable"));
    }

    #[test]
    fn what_devices_are_assigned_by_is_said_with_its_reason() {
        let info = P2pInfo {
            domains: Vec::new(),
            others: Vec::new(),
            routes: Vec::new(),
            exposures: Vec::new(),
            memory: Vec::new(),
            backend: Some(P2pBackend {
                interface: P2pInterface::Iommufd,
                reason: "as asked for".into(),
            }),
            unshared_transfers_fail_silently: false,
        };
        let text = show(&info, 80).render(false);
        assert!(!text.contains("warning"), "{text}");
        assert!(
            text.ends_with("assigned by iommufd, as asked for\n"),
            "{text}"
        );
    }
    #[test]
    fn transfers_that_fail_silently_are_warned_of() {
        let info = P2pInfo {
            domains: Vec::new(),
            others: vec!["a".into(), "b".into()],
            routes: Vec::new(),
            backend: None,
            memory: Vec::new(),
            exposures: Vec::new(),
            unshared_transfers_fail_silently: true,
        };
        let text = show(&info, 80).render(false);
        let (before, warning) = text.split_once("warning: ").unwrap();
        assert!(before.ends_with("guest memory only: a b\n"), "{text}");
        assert!(warning.contains("silently wrong"), "{text}");
    }
}
