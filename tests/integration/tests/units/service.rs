//! Units, as an administrator handles them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::Lab;

const START: Duration = Duration::from_secs(300);

/// What the documentation says to do once.
pub(crate) fn install(lab: &Lab) {
    let boot = "until systemctl is-active --quiet default.target; do usleep 500000; done";
    let boot = lab.command(["sh", "-c", boot]).deadline(START);
    boot.run().unwrap().ok().unwrap();
    lab.sh("mkdir -p /usr/bin && { [ -e /usr/bin/p2pctl ] || cp /bin/p2pctl /usr/bin/; }")
        .unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/systemd");
    for unit in ["p2pctl.service", "p2pctl-reconcile.service"] {
        let target = format!("/etc/systemd/system/{unit}");
        lab.put_bytes(&fs::read(units.join(unit)).unwrap(), &target, 0o644)
            .unwrap();
    }
    lab.run(["systemctl", "daemon-reload"])
        .unwrap()
        .ok()
        .unwrap();
}

/// Starts the daemon, which listens then.
pub(crate) fn start(lab: &Lab) {
    let enable = ["systemctl", "enable", "--now", "p2pctl"];
    let enabled = lab.command(enable).deadline(START).run().unwrap();
    let said = ["journalctl", "-u", "p2pctl", "-n", "20", "--no-pager"];
    assert_eq!(enabled.code(), Some(0), "{:#?}", lab.run(said));
    assert_eq!(show(lab, "p2pctl", "ActiveState"), "active");
    lab.run(["p2pctl", "status"]).unwrap().ok().unwrap();
    // Whatever befell it in a turn before.
    lab.run(["systemctl", "reset-failed", "p2pctl"]).unwrap();
}

pub(crate) fn show(lab: &Lab, unit: &str, property: &str) -> String {
    let words = ["systemctl", "show", "--value", "-p", property, unit];
    lab.run(words).unwrap().ok().unwrap().trim().to_owned()
}

/// Waits until a property of a unit is this.
pub(crate) fn wait_for(lab: &Lab, unit: &str, property: &str, value: &str) {
    let script = format!(
        "until [ \"$(systemctl show --value -p {property} {unit})\" = {value} ]; do usleep 200000; done"
    );
    let wait = lab.command(["sh", "-c", &script]).deadline(START);
    wait.run().unwrap().ok().unwrap();
}
