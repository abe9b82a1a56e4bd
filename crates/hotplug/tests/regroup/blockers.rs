//! Refusals before the first write.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use hotplug::regroup::{Blocker, Outcome, Regroup, RegroupError, Vmm};
use iommu_group::{Goals, PlanOptions};

use crate::fake_host::WriteFault;
use crate::guests::{Behaviour, Guest};
use crate::{A, B, Bench, C, D, sbdf, set};

/// The lines of the refusal of a plan to join A and B, after a change of the host.
fn refused(bench: &Bench, arrange: impl FnOnce(&Bench)) -> Vec<String> {
    let plan = bench.join(&[A, B]);
    arrange(bench);
    let before = bench.host.snapshot();
    bench.host.fail(0, WriteFault::Errno(5));
    let Err(RegroupError::Refused(refusal)) = bench.apply(&plan, &[]) else {
        panic!("it was not refused");
    };
    assert!(!bench.host.failed(), "nothing was written");
    assert_eq!(bench.host.snapshot(), before);
    assert!(!bench.state().path().join("running.jsonl").exists());
    refusal.blockers.iter().map(ToString::to_string).collect()
}

/// Creates a block device or network interface of a function in sysfs.
fn offer(bench: &Bench, function: &str, subsystem: &str, path: &str) -> std::path::PathBuf {
    let dir = bench.host.dir(sbdf(function)).join(path);
    fs::create_dir_all(&dir).unwrap();
    drop(fs::remove_file(dir.join("subsystem")));
    symlink(
        Path::new("../../class").join(subsystem),
        dir.join("subsystem"),
    )
    .unwrap();
    dir
}

#[test]
fn a_vm_that_cannot_have_the_peers_refuses_before_the_first_write() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    *guest.behaviour.lock().unwrap() = Behaviour::NoPeers;
    let before = bench.host.snapshot();
    bench.host.fail(0, WriteFault::Errno(5));
    let result = bench.apply(&bench.join(&[A, B]), &[&guest as &dyn Vmm]);
    let Err(RegroupError::Refused(refusal)) = result else {
        panic!("it was not refused");
    };
    assert_eq!(
        refusal.to_string(),
        format!("VM web refused: {A} cannot be a peer")
    );
    assert!(!bench.host.failed(), "nothing was written");
    assert_eq!(bench.host.snapshot(), before);
    assert_eq!(guest.log.lock().unwrap().len(), 0, "the guest got no calls");
}

#[test]
fn unreachable_guest_memory_is_reported_before_the_unplug() {
    let bench = Bench::new();
    let guest = Guest::new("web", &[sbdf(A), sbdf(B), sbdf(C)]);
    let vmms = [&guest as &dyn Vmm];
    let plan = bench.join(&[A, B]);
    let check = |memory| {
        *guest.memory.lock().unwrap() = memory;
        let regroup = Regroup::new(&bench.host, &vmms, bench.state());
        regroup.check(&plan).unwrap().blockers
    };
    assert_eq!(check(Some(0..=0x3fff_ffff)), []);
    // A page of it is in the window of the switch. C stays, and nothing changes for it.
    let memory = 0x803f_f000..=0x9fff_ffff;
    let blockers = check(Some(memory.clone()));
    let [
        Blocker::Memory {
            vm,
            function,
            memory: found,
            hole,
        },
    ] = blockers.as_slice()
    else {
        panic!("{blockers:?}");
    };
    assert_eq!((vm.as_str(), *function, found), ("web", sbdf(A), &memory));
    // With redirect off this is the port of D.
    assert_eq!(hole.port, sbdf("0000:02:03.0"));
    let text = blockers[0].to_string();
    assert!(
        text.contains("web") && text.contains("restart web"),
        "{text}"
    );
    let Err(RegroupError::Refused(refusal)) = bench.apply(&plan, &vmms) else {
        panic!("it was not refused");
    };
    assert_eq!(refusal.blockers, blockers);
    assert_eq!(guest.log.lock().unwrap().len(), 0, "the guest got no calls");
}

#[test]
fn mounts_swap_and_members_are_reported() {
    let bench = Bench::new();
    let lines = refused(&bench, |bench| {
        offer(bench, A, "block", "nvme/nvme0/nvme0n1");
        let part = offer(bench, A, "block", "nvme/nvme0/nvme0n1/nvme0n1p1");
        fs::write(part.join("dev"), "259:3\n").unwrap();
        let part = offer(bench, A, "block", "nvme/nvme0/nvme0n1/nvme0n1p2");
        fs::create_dir_all(part.join("holders/dm-0")).unwrap();
        let disk = offer(bench, B, "block", "nvme/nvme1/nvme1n1");
        fs::write(disk.join("dev"), "259:9\n").unwrap();
        let proc = bench.host.proc_dir();
        let mount = "36 35 259:3 / /data rw shared:1 - ext4 /dev/root rw\n";
        fs::write(proc.join("self/mountinfo"), mount).unwrap();
        let swaps = "Filename Type Size Used Priority\n/dev/nvme1n1 partition 1 0 -2\n";
        fs::write(proc.join("swaps"), swaps).unwrap();
    });
    assert_eq!(
        lines,
        [
            format!("{A}: nvme0n1p1 is mounted on /data (umount it, or leave {A} out)"),
            format!("{A}: nvme0n1p2 is part of dm-0 (stop dm-0, or leave {A} out)"),
            format!(
                "{B}: nvme1n1 is in use as swap space (swapoff /dev/nvme1n1, or leave {B} out)"
            ),
        ]
    );
}

#[test]
fn mounts_of_other_namespaces_are_reported_with_their_process() {
    let bench = Bench::new();
    let lines = refused(&bench, |bench| {
        let disk = offer(bench, A, "block", "nvme/nvme0/nvme0n1");
        fs::write(disk.join("dev"), "259:3\n").unwrap();
        let mount = "36 35 259:3 / /data rw - ext4 /dev/nvme0n1 rw\n";
        for (pid, namespace, mounts) in [("1", 1, ""), ("41", 1, ""), ("42", 2, mount)] {
            let process = bench.host.proc_dir().join(pid);
            fs::create_dir_all(process.join("ns")).unwrap();
            symlink(format!("mnt:[{namespace}]"), process.join("ns/mnt")).unwrap();
            fs::write(process.join("mountinfo"), mounts).unwrap();
            fs::write(process.join("comm"), "postgres\n").unwrap();
        }
    });
    assert_eq!(
        lines,
        [format!(
            "{A}: nvme0n1 is mounted on /data of postgres (process 42) (umount it, or leave {A} out)"
        )]
    );
}

#[test]
fn a_multipath_disk_is_found() {
    let bench = Bench::new();
    let lines = refused(&bench, |bench| {
        offer(bench, A, "block", "nvme/nvme0/nvme0c0n1");
        let head = bench.host.proc_dir().join("../sys/class/block/nvme0n1");
        fs::create_dir_all(&head).unwrap();
        symlink("../../block", head.join("subsystem")).unwrap();
        fs::write(head.join("dev"), "259:5\n").unwrap();
        let mount = "36 35 0:40 / /data rw - btrfs /dev/nvme0n1 rw\n";
        fs::write(bench.host.proc_dir().join("self/mountinfo"), mount).unwrap();
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("nvme0n1 is mounted on /data"),
        "{lines:?}"
    );
}

#[test]
fn only_interfaces_that_are_up_block() {
    let bench = Bench::new();
    let lines = refused(&bench, |bench| {
        let up = offer(bench, B, "net", "net/eth0");
        fs::write(up.join("flags"), "0x1003\n").unwrap();
        let down = offer(bench, B, "net", "net/eth1");
        fs::write(down.join("flags"), "0x1002\n").unwrap();
    });
    let wanted = format!("{B}: eth0 is up (ip link set eth0 down, or leave {B} out)");
    assert_eq!(lines, [wanted]);
}

#[test]
fn unknown_processes_block_and_known_vmms_do_not() {
    let bench = Bench::new();
    let open = |bench: &Bench| {
        let group = fs::read_link(bench.host.dir(sbdf(A)).join("iommu_group")).unwrap();
        let fd = bench.host.proc_dir().join("4711/fd");
        fs::create_dir_all(&fd).unwrap();
        fs::write(bench.host.proc_dir().join("4711/comm"), "qemu\n").unwrap();
        let number = group.file_name().unwrap().to_str().unwrap();
        symlink(format!("/dev/vfio/{number}"), fd.join("7")).unwrap();
    };
    let lines = refused(&bench, open);
    let wanted = format!("{A} is in use by qemu (process 4711) (shut that down, or leave {A} out)");
    assert_eq!(lines, [wanted]);
    // The guest releases its device on request, but another process has this one open.
    let plan = bench.join(&[A, B]);
    let guest = Guest::new("web", &[sbdf(A), sbdf(B)]);
    let before = bench.host.snapshot();
    let vmms = [&guest as &dyn Vmm];
    let regroup =
        Regroup::new(&bench.host, &vmms, bench.state()).guest_deadline(Duration::from_millis(50));
    let report = regroup.apply(&plan, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Old);
    let (_, error) = report.failure.unwrap();
    assert_eq!(error, format!("{A} is in use by qemu (process 4711)"));
    assert_eq!(bench.host.snapshot(), before);
}

#[test]
fn devices_of_two_vms_do_not_get_into_one_group() {
    let bench = Bench::new();
    let (web, db) = (
        Guest::new("web", &[sbdf(A), sbdf(B)]),
        Guest::new("db", &[sbdf(C), sbdf(D)]),
    );
    let vmms: [&dyn Vmm; 2] = [&web, &db];
    bench.apply(&bench.join(&[A, B]), &vmms).unwrap();
    web.log.lock().unwrap().clear();
    let before = bench.host.snapshot();
    // C joins the two; A and B would stay where they are.
    let Err(RegroupError::Refused(refusal)) = bench.apply(&bench.join(&[A, C]), &vmms) else {
        panic!("it was not refused");
    };
    let lines: Vec<String> = refusal.blockers.iter().map(ToString::to_string).collect();
    let wanted = format!(
        "{A} (web) {B} (web) {C} (db) would be in one IOMMU group, which only one VM can open (leave out the \
         devices of the other VMs)"
    );
    assert_eq!(lines, [wanted]);
    assert_eq!(bench.host.snapshot(), before);
    assert_eq!(*web.log.lock().unwrap(), [""; 0]);
    assert_eq!(*db.log.lock().unwrap(), [""; 0]);
}

#[test]
fn a_host_driver_blocks() {
    let bench = Bench::new();
    let lines = refused(&bench, |bench| {
        let driver = bench.host.dir(sbdf(A)).join("driver");
        fs::remove_file(&driver).unwrap();
        symlink("../../../../bus/pci/drivers/nvme", driver).unwrap();
    });
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with(&format!(
        "{A} is bound to nvme (stop what uses it and bind it to vfio-pci"
    )));
}

#[test]
fn a_changed_host_makes_the_plan_stale() {
    let bench = Bench::new();
    let lines = refused(&bench, |bench| {
        bench.host.meddle(sbdf("0000:02:00.0"), 0x1f);
    });
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("the host has changed since the plan was made"));
    let bench = Bench::new();
    let lines = refused(&bench, |bench| bench.host.pull(sbdf(B)));
    assert!(lines[0].contains(B), "{lines:?}");
}

#[test]
fn a_plan_with_warnings_is_refused_with_the_options_to_accept_them() {
    let bench = Bench::new();
    let goals = Goals {
        join: vec![set(&[A, B])],
        ..Goals::default()
    };
    let plan = bench.plan(&goals, &PlanOptions::default());
    if plan.is_acceptable() {
        panic!("this host has neighbours that become reachable");
    }
    let Err(RegroupError::Refused(refusal)) = bench.apply(&plan, &[]) else {
        panic!("it was not refused");
    };
    let lines: Vec<String> = refusal.blockers.iter().map(ToString::to_string).collect();
    for neighbour in [C, D] {
        let option = format!("(accept it: --expose {neighbour})");
        assert!(
            lines.iter().any(|line| line.ends_with(&option)),
            "{lines:#?}"
        );
    }
}

#[test]
fn lockdown_and_acs_override_are_reported() {
    let bench = Bench::new();
    let lines = refused(&bench, |bench| {
        let dir = bench.host.proc_dir().join("../sys/kernel/security");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("lockdown"), "none [integrity] confidentiality\n").unwrap();
    });
    assert!(
        lines[0].starts_with("the kernel is locked down (integrity)"),
        "{lines:?}"
    );
    let bench = Bench::new();
    let arguments = "intel_iommu=on pcie_acs_override=downstream\n";
    fs::write(bench.host.proc_dir().join("cmdline"), arguments).unwrap();
    let lines = refused(&bench, |_| {});
    assert!(lines[0].contains("pcie_acs_override="), "{lines:?}");
}

#[test]
fn an_unfinished_transaction_blocks_a_new_one() {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    assert!(bench.apply_until(&plan, &[], 1));
    let Err(RegroupError::Refused(refusal)) = bench.apply(&plan, &[]) else {
        panic!("it was not refused");
    };
    assert!(matches!(refusal.blockers[0], Blocker::Unfinished { .. }));
    let status = bench.state().status("first").unwrap();
    assert_eq!(status.unfinished.unwrap().id.as_deref(), Some("000001"));
    assert_eq!(bench.recover(&[]).unwrap().outcome, Outcome::Old);
}

#[test]
fn only_one_process_changes_the_host() {
    let bench = Bench::new();
    let plan = bench.join(&[A, B]);
    let regroup = hotplug::regroup::Regroup::new(&bench.host, &[], bench.state());
    let mut second = None;
    let report = regroup.apply(&plan, &mut |_| {
        second.get_or_insert_with(|| {
            assert!(bench.state().status("first").unwrap().busy);
            bench.apply(&plan, &[])
        });
    });
    assert_eq!(report.unwrap().outcome, Outcome::New);
    let error = second.unwrap().unwrap_err().to_string();
    assert!(
        error.starts_with("another process is changing this host"),
        "{error}"
    );
}
