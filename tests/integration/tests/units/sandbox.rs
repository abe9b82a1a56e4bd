//! What a process can do that is confined as a unit says.

use std::time::Duration;

use lab::Lab;

/// What is tried, and how. Whatever is left behind is in `$DIR`, or called `tried`.
const TRIALS: [(&str, &str); 17] = [
    ("mount", "mount -t tmpfs tried /mnt && umount /mnt"),
    ("etc", "touch /etc/tried"),
    ("usr", "touch /usr/bin/tried"),
    ("run", "touch /run/tried"),
    ("tmp", "touch /tmp/tried"),
    ("device", "mknod /dev/shm/tried b 259 0"),
    ("disk", "dd if=/dev/nvme0n1 of=/dev/null bs=512 count=1"),
    ("kernel-log", "echo tried > /dev/kmsg"),
    ("module", "modprobe loop"),
    ("host-name", "hostname $(hostname)"),
    ("namespace", "unshare -n true"),
    ("internet", "ifconfig lo up"),
    ("owner", "touch $DIR/tried && chown 1 $DIR/tried"),
    // From here on it is what the daemon is for.
    ("state", "touch $DIR/tried"),
    (
        "driver",
        "echo vfio-pci > /sys/bus/pci/devices/0000:03:00.0/driver_override",
    ),
    (
        "acs",
        "setpci -s 00:04.0 ECAP_ACS+6.w=$(setpci -s 00:04.0 ECAP_ACS+6.w)",
    ),
    ("descriptors", "readlink /proc/1/fd/0"),
];

/// What has to be possible.
pub(crate) const NEEDED: [&str; 4] = ["state", "driver", "acs", "descriptors"];

const DEADLINE: Duration = Duration::from_secs(120);

/// Everything that is tried.
pub(crate) fn all() -> Vec<String> {
    TRIALS.map(|(name, _)| name.to_owned()).into()
}

/// What can be done with the settings of a unit. The daemon's state directory is one of them, and where it is told.
pub(crate) fn possible(lab: &Lab, unit: &str) -> Vec<String> {
    let text = lab.read(&format!("/etc/systemd/system/{unit}")).unwrap();
    let kept = |line: &&str| {
        let (key, _) = line.split_once('=').unwrap_or((line, ""));
        !["Type", "ExecStart", "Restart", "RemainAfterExit"].contains(&key)
            && !key.starts_with("Condition")
    };
    let lines: Vec<&str> = text.lines().filter(kept).collect();
    let trial = "[Service]\nType=oneshot\nExecStart=/bin/sh /etc/trial.sh";
    let text = lines.join("\n").replacen("[Service]", trial, 1);
    lab.put_bytes(
        script("$STATE_DIRECTORY").as_bytes(),
        "/etc/trial.sh",
        0o644,
    )
    .unwrap();
    lab.put_bytes(text.as_bytes(), "/etc/systemd/system/trial.service", 0o644)
        .unwrap();
    let start = "systemctl daemon-reload && systemctl start trial";
    let start = lab.command(["sh", "-c", start]).deadline(DEADLINE);
    start.run().unwrap().ok().unwrap();
    told(lab, "/var/lib/p2pctl")
}

/// The same without any.
pub(crate) fn possible_outside(lab: &Lab) -> Vec<String> {
    lab.command(["sh", "-c", &script("/tmp")])
        .deadline(DEADLINE)
        .run()
        .unwrap()
        .ok()
        .unwrap();
    told(lab, "/tmp")
}

fn script(dir: &str) -> String {
    let trials = TRIALS.map(|(name, how)| format!("({how}) && echo {name} >> $DIR/possible\n"));
    format!("DIR={dir}\nmkdir -p /mnt\n{}true\n", trials.concat())
}

fn told(lab: &Lab, dir: &str) -> Vec<String> {
    let told = format!(
        "cat {dir}/possible; rm -f {dir}/possible {dir}/tried /etc/tried /usr/bin/tried /run/tried /tmp/tried /dev/shm/tried"
    );
    let told = lab.sh(&told).unwrap();
    told.lines().map(str::to_owned).collect()
}
