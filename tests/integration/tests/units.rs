//! The systemd units, started by a systemd: what they may not do they cannot, and what they are for they do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod units {
    pub(crate) mod sandbox;
    pub(crate) mod service;
}

use std::time::Duration;

use lab::{Lab, Output, SharedLab, Turn};
use units::{sandbox, service};

static LAB: SharedLab = SharedLab::new("mixed-four-ports", "units").with_systemd();

/// Two DMA engines, a drive and a network card below the four ports of one switch.
const ENDPOINTS: [&str; 4] = [
    "0000:03:00.0",
    "0000:04:00.0",
    "0000:05:00.0",
    "0000:06:00.0",
];

/// How long a transaction of a few devices may take here.
const TRANSACTION: Duration = Duration::from_secs(300);

/// How long somebody may watch the daemon.
const WATCH: Duration = Duration::from_secs(1800);

/// A turn with the units installed as the documentation has it, the daemon running, and the first two endpoints bound
/// to vfio-pci, each in a group of its own.
fn lab() -> Turn<'static> {
    let lab = LAB.turn();
    service::install(&lab);
    let [a, b, ..] = ENDPOINTS;
    lab.bind_vfio(a).unwrap();
    lab.bind_vfio(b).unwrap();
    service::start(&lab);
    if are_together(&lab) {
        isolate(&lab);
    }
    lab
}

fn apply(lab: &Lab, args: &[&str]) -> Output {
    let words = ["p2pctl", "apply"].iter().chain(args);
    let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
    lab.command(words).deadline(TRANSACTION).run().unwrap()
}

fn join(lab: &Lab) -> Output {
    let [a, b, ..] = ENDPOINTS;
    apply(lab, &["--join", a, b])
}

/// The switch has no ACS, so only Linux keeps the two apart: that has to be accepted.
fn isolate(lab: &Lab) {
    let [a, b, ..] = ENDPOINTS;
    let output = apply(lab, &["--isolate", a, b, "--expose", a, b]);
    output.ok().unwrap();
}

fn are_together(lab: &Lab) -> bool {
    let [a, b, ..] = ENDPOINTS;
    lab.group(a).unwrap() == lab.group(b).unwrap()
}

/// How many changes there were on this host.
fn changes(lab: &Lab) -> usize {
    let count = lab.sh("ls /var/lib/p2pctl/done 2>/dev/null | wc -l");
    count.unwrap().trim().parse().unwrap()
}

#[test]
fn what_the_daemon_has_no_use_for_is_kept_from_it() {
    let lab = lab();
    lab.bind(ENDPOINTS[2], "nvme").unwrap();
    for unit in ["p2pctl.service", "p2pctl-reconcile.service"] {
        assert_eq!(
            sandbox::possible(&lab, unit),
            sandbox::NEEDED,
            "{unit} can do more than it needs, or less"
        );
        // Out of ten, in tenths.
        let words = ["systemd-analyze", "security", "--threshold=30", unit];
        lab.run(words).unwrap().ok().unwrap();
    }
    assert_eq!(sandbox::possible_outside(&lab), sandbox::all());
    let status = lab
        .sh("cat /proc/$(systemctl show -p MainPID --value p2pctl)/status")
        .unwrap();
    // A filter of system calls (linux Documentation/filesystems/proc.rst, table 1-2).
    for line in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
        assert!(status.contains(line), "{status}");
    }
    lab.bind_vfio(ENDPOINTS[2]).unwrap();
}

#[test]
fn the_daemon_changes_groups_and_hears_of_what_others_change() {
    let lab = lab();
    let watch = ["sh", "-c", "exec p2pctl watch 2>&1"];
    let mut watch = lab.command(watch).deadline(WATCH).spawn().unwrap();
    watch.wait_for("waiting for events", TRANSACTION).unwrap();

    // Before any change of its own: after one the daemon has to look at the host first.
    let port = "00:04.0";
    let word = lab.run(["setpci", "-s", port, "ECAP_ACS+6.w"]);
    let word = word.unwrap().ok().unwrap();
    lab.run(["setpci", "-s", port, "ECAP_ACS+6.w=0"]).unwrap();
    let drift = format!("ACS of 0000:{port} is 0000, and was {}", word.trim());
    watch.wait_for(&drift, TRANSACTION).unwrap();
    // It is above devices that VFIO has.
    watch.wait_for("acs-restored", TRANSACTION).unwrap();
    let back = lab.run(["setpci", "-s", port, "ECAP_ACS+6.w"]);
    assert_eq!(back.unwrap().ok().unwrap(), word);
    let gone = ENDPOINTS[1];
    lab.sh(&format!("echo 1 > /sys/bus/pci/devices/{gone}/remove"))
        .unwrap();
    watch
        .wait_for(&format!("{gone} is gone"), TRANSACTION)
        .unwrap();
    lab.sh("echo 1 > /sys/bus/pci/rescan").unwrap();
    lab.bind_vfio(gone).unwrap();

    let before = changes(&lab);
    let told = join(&lab).ok().unwrap();
    assert!(told.contains(": done in "), "{told}");
    watch.wait_for("transaction-ended", TRANSACTION).unwrap();
    assert!(are_together(&lab));
    isolate(&lab);
    assert!(!are_together(&lab));
    assert_eq!(changes(&lab), before + 2);

    // What a unit says is in the journal a while later.
    for event in ["event: host transaction-ended", &drift] {
        let wait = format!(
            "until journalctl -u p2pctl --no-pager | grep -qF '{event}'; do usleep 200000; done"
        );
        let wait = lab.command(["sh", "-c", &wait]).deadline(TRANSACTION);
        wait.run().unwrap().ok().unwrap();
    }
    let journal = lab.sh("journalctl -u p2pctl --no-pager").unwrap();
    assert!(!journal.contains("uevents are not available"), "{journal}");
    assert!(!journal.contains("transaction-step"), "{journal}");
}

/// Expects a join of the first endpoint with another to be refused for this reason.
fn refused(lab: &Lab, other: &str, reason: &str) {
    let output = apply(lab, &["--join", ENDPOINTS[0], other]);
    assert_eq!(output.code(), Some(2), "{output:?}");
    // Lines are broken to the width of the terminal.
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert!(words.join(" ").contains(reason), "{}", output.stdout);
}

#[test]
fn users_of_a_device_are_seen_from_within() {
    let lab = lab();
    let [_, b, drive, card] = ENDPOINTS;
    lab.bind(drive, "nvme").unwrap();
    lab.bind(card, "igb").unwrap();
    // Where services are kept from looking, and where mounts of others do not show.
    lab.sh("modprobe ext4 && mke2fs -F /dev/nvme0n1 >/dev/null && mkdir -p /home/data && mount -t ext4 /dev/nvme0n1 /home/data")
        .unwrap();
    refused(&lab, drive, "nvme0n1 is mounted on /home/data");
    lab.sh("umount /home/data").unwrap();
    lab.sh("mkswap /dev/nvme0n1 >/dev/null && swapon /dev/nvme0n1")
        .unwrap();
    refused(&lab, drive, "nvme0n1 is in use as swap space");
    lab.sh("swapoff /dev/nvme0n1").unwrap();

    let interface = format!("ls /sys/bus/pci/devices/{card}/net");
    let interface = lab.sh(&interface).unwrap();
    let interface = interface.trim();
    lab.sh(&format!("ifconfig {interface} up")).unwrap();
    refused(&lab, card, &format!("{interface} is up"));
    lab.sh(&format!("ifconfig {interface} down")).unwrap();

    let group = lab.group(b).unwrap();
    let open = format!("exec 3<>/dev/vfio/{group}; echo open; exec sleep 600");
    let holder = lab.command(["sh", "-c", &open]).deadline(TRANSACTION);
    let mut holder = holder.spawn().unwrap();
    holder.wait_for("open", TRANSACTION).unwrap();
    refused(&lab, b, "in use by sleep (process");
    drop(holder);

    lab.sh("mke2fs -F /dev/nvme0n1 >/dev/null").unwrap();
    let mounted = "mount -t ext4 /dev/nvme0n1 /mnt && echo mounted && exec sleep 600";
    lab.sh("mkdir -p /mnt").unwrap();
    let alone = lab.command(["unshare", "-m", "sh", "-c", mounted]);
    let mut alone = alone.deadline(TRANSACTION).spawn().unwrap();
    alone.wait_for("mounted", TRANSACTION).unwrap();
    refused(&lab, drive, "nvme0n1 is mounted on /mnt of sleep (process");
    drop(alone);
    for endpoint in [drive, card] {
        lab.bind_vfio(endpoint).unwrap();
    }
}

#[test]
fn virtual_machines_are_found_wherever_their_sockets_are() {
    let lab = lab();
    let places = ["/run/p2p-vmm/in-run", "/tmp/in-tmp", "/root/in-home"];
    let mut vmms = Vec::new();
    for place in places {
        let socket = format!("{place}.sock");
        lab.sh(&format!(
            "mkdir -p $(dirname {socket}) /run/p2pctl/vms; \
             [ {place} = /run/p2p-vmm/in-run ] || ln -sf {socket} /run/p2pctl/vms/"
        ))
        .unwrap();
        let vmm = ["p2p-vmm", "--api-socket", &socket];
        vmms.push(lab.command(vmm).deadline(TRANSACTION).spawn().unwrap());
        let wait = format!("until vm-call {socket} GET vmm.ping; do usleep 100000; done");
        lab.sh(&wait).unwrap();
    }
    let guests = lab.sh("vm-call /run/p2pctl/api.sock GET guests").unwrap();
    for place in places {
        assert!(guests.contains(&format!("{place}.sock")), "{guests}");
    }
    // It speaks with each before it touches anything.
    join(&lab).ok().unwrap();
    isolate(&lab);
    drop(vmms);
    lab.sh("rm -rf /run/p2pctl/vms /run/p2p-vmm").unwrap();
}

#[test]
fn a_daemon_that_is_killed_comes_back_and_one_that_is_stopped_does_not() {
    let lab = lab();
    // In the midst of a change.
    let [a, b, ..] = ENDPOINTS;
    let begin = format!(
        "rm -f /tmp/told; p2pctl apply --join {a} {b} >/tmp/told 2>&1 & \
         n=0; until [ $(cat /var/lib/p2pctl/running.jsonl 2>/dev/null | wc -l) -ge 9 ]; do \
         usleep 1000; n=$((n+1)); [ $n -lt 30000 ] || exit 1; done; \
         systemctl kill --signal=KILL p2pctl; wait $!; true"
    );
    let begin = lab.command(["sh", "-c", &begin]).deadline(TRANSACTION);
    begin.run().unwrap().ok().unwrap();
    service::wait_for(&lab, "p2pctl", "NRestarts", "1");
    service::wait_for(&lab, "p2pctl", "ActiveState", "active");
    let settled = "until p2pctl status | grep -q '^nothing is under way'; do usleep 200000; done";
    let settled = lab.command(["sh", "-c", settled]).deadline(TRANSACTION);
    settled.run().unwrap().ok().unwrap();
    if are_together(&lab) {
        isolate(&lab);
    }
    join(&lab).ok().unwrap();
    isolate(&lab);

    lab.run(["systemctl", "stop", "p2pctl"])
        .unwrap()
        .ok()
        .unwrap();
    for (property, value) in [
        ("ActiveState", "inactive"),
        ("Result", "success"),
        ("ExecMainStatus", "0"),
    ] {
        assert_eq!(service::show(&lab, "p2pctl", property), value, "{property}");
    }
    // Links to virtual machines are in it, which go on.
    lab.sh("[ -d /run/p2pctl ] && ! [ -e /run/p2pctl/api.sock ]")
        .unwrap();
}

#[test]
fn what_a_file_asks_for_is_there_when_its_unit_has_started() {
    let lab = lab();
    let unit = "p2pctl-reconcile";
    let start = || {
        // Nobody starts it this often in so short a time.
        lab.run(["systemctl", "reset-failed", unit]).unwrap();
        let start = ["systemctl", "restart", unit];
        lab.command(start).deadline(TRANSACTION).run().unwrap()
    };
    lab.sh("rm -rf /etc/p2pctl && mkdir /etc/p2pctl").unwrap();
    // Where there is no file nothing is asked for.
    start().ok().unwrap();
    assert_eq!(service::show(&lab, unit, "ConditionResult"), "no");

    let [a, b, ..] = ENDPOINTS;
    let file = |text: String| {
        lab.put_bytes(text.as_bytes(), "/etc/p2pctl/domains.toml", 0o600)
            .unwrap();
    };
    // By the daemon, and where there is none by itself.
    for alone in [false, true] {
        if alone {
            lab.run(["systemctl", "stop", "p2pctl"])
                .unwrap()
                .ok()
                .unwrap();
        }
        let before = changes(&lab);
        file(format!("[[domain]]\nfunctions = [\"{a}\", \"{b}\"]\n"));
        start().ok().unwrap();
        assert!(are_together(&lab));
        assert_eq!(service::show(&lab, unit, "ActiveState"), "active");
        assert_eq!(changes(&lab), before + 1);
        // Again there is nothing to do.
        start().ok().unwrap();
        assert_eq!(changes(&lab), before + 1);
        // What nobody has accepted is refused, which is to be seen.
        file(format!("isolate = [\"{a}\", \"{b}\"]\n"));
        assert_eq!(start().code(), Some(1));
        assert_eq!(service::show(&lab, unit, "ActiveState"), "failed");
        assert_eq!(service::show(&lab, unit, "ExecMainStatus"), "2");
        file(format!(
            "isolate = [\"{a}\", \"{b}\"]\nexpose = [\"{a}\", \"{b}\"]\n"
        ));
        start().ok().unwrap();
        assert!(!are_together(&lab));
        assert_eq!(changes(&lab), before + 2);
    }
}
