//! A host is brought to what a file says, before VMs start.

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{Lab, Output, Vm};
use serde_json::Value;

use crate::{ENDPOINTS, TRANSACTION, lab, sbdf, snapshot};

const FILE: &str = "/tmp/domains.toml";

fn reconcile(lab: &Lab, file: &str) -> (Output, Value) {
    lab.put_bytes(file.as_bytes(), FILE, 0o600).unwrap();
    let words = ["p2pctl", "reconcile", "--config", FILE, "--json"];
    let output = lab.command(words).deadline(TRANSACTION).run().unwrap();
    let told = serde_json::from_str(&output.stdout).unwrap_or_default();
    (output, told)
}

/// How many changes there were on this host.
fn changes(lab: &Lab) -> usize {
    lab.sh("ls /var/lib/p2pctl/done 2>/dev/null | wc -l")
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// As systemd runs it at boot, and once more, as when its unit is started again.
#[test]
fn a_file_is_reached_once_and_then_there_is_nothing_to_do() {
    let lab = lab(4);
    let [a, b, c, d] = ENDPOINTS;
    let domains = format!(
        "isolate = [\"{c}\", \"{d}\"]\nexpose = [\"{c}\", \"{d}\"]\n[[domain]]\nfunctions = [\"{a}\", \"{b}\"]\n"
    );
    let begun = changes(&lab);
    let (output, told) = reconcile(&lab, &domains);
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert_eq!(told["outcome"], "new", "{told:#}");
    let reached = snapshot(&lab);
    assert!(reached.groups.together(sbdf(a), sbdf(b)));
    for other in [c, d] {
        assert!(!reached.groups.together(sbdf(a), sbdf(other)));
    }
    assert!(!reached.groups.together(sbdf(c), sbdf(d)));
    assert_eq!(changes(&lab), begun + 1);

    let groups = lab.groups().unwrap();
    for _ in 0..2 {
        let (output, told) = reconcile(&lab, &domains);
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert_eq!(told["outcome"], "nothing", "{told:#}");
    }
    assert_eq!(snapshot(&lab), reached);
    // What is removed and found again gets a group with another number.
    assert_eq!(lab.groups().unwrap(), groups);
    assert_eq!(changes(&lab), begun + 1);

    // The VM that was waited for has its peers.
    // The switch has no ACS: all four reach each other, which is accepted.
    let vm = Vm::new("guest-probe 2").p2p_device(a).p2p_device(b);
    let vm = vm.word("--expose").word(&ENDPOINTS.join(","));
    let output = lab.vm(&vm).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let findings = Finding::in_console(&output.stdout);
    let peers = findings.iter().filter_map(|finding| match finding {
        Finding::Peer { result, .. } => Some(*result),
        _ => None,
    });
    assert_eq!(peers.collect::<Vec<_>>(), [Outcome::Ok; 4]);

    // Another file is another wish: what is missing of it, and no more.
    let (output, told) = reconcile(&lab, &format!("isolate = [\"{a}\", \"{b}\"]\n"));
    assert_eq!(output.code(), Some(2), "{output:?}");
    assert_eq!(snapshot(&lab), reached, "{told:#}");
    let accepted = format!("isolate = [\"{a}\", \"{b}\"]\nexpose = [\"{a}\", \"{b}\"]\n");
    let (output, told) = reconcile(&lab, &accepted);
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert_eq!(told["outcome"], "new", "{told:#}");
    let (output, told) = reconcile(&lab, &accepted);
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert_eq!(told["outcome"], "nothing", "{told:#}");
    assert!(!snapshot(&lab).groups.together(sbdf(a), sbdf(b)));
}
