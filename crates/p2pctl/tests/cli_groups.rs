//! `p2pctl groups` as an operator runs it, on directories in the shape of `/sys`.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up should stop")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

fn p2pctl(sysfs: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_p2pctl"))
        .env_remove("COLUMNS")
        .args(args)
        .arg("--sysfs")
        .arg(sysfs)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn add(root: &Path, name: &str, group: &str, driver: Option<&str>) {
    let device = root.join("devices/pci0000:00").join(name);
    fs::create_dir_all(&device).unwrap();
    let members = root.join("kernel/iommu_groups").join(group).join("devices");
    fs::create_dir_all(&members).unwrap();
    symlink(&device, members.join(name)).unwrap();
    if let Some(driver) = driver {
        symlink(Path::new("/drivers").join(driver), device.join("driver")).unwrap();
    }
}

#[test]
fn groups_and_their_drivers() {
    let root = tempfile::tempdir().unwrap();
    add(root.path(), "0000:00:04.0", "2", Some("pcieport"));
    add(root.path(), "0000:03:00.0", "10", Some("vfio-pci"));
    add(root.path(), "0000:03:00.1", "10", None);
    let output = p2pctl(root.path(), &["groups"]);
    assert_eq!(
        text(&output.stdout),
        "\
GROUP  FUNCTION  DRIVER
    2  00:04.0   pcieport
   10  03:00.0   vfio-pci
       03:00.1
"
    );
    assert_eq!(output.status.code(), Some(0));

    let output = p2pctl(root.path(), &["groups", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["schema"], "p2pctl/groups/1");
    assert_eq!(json["groups"][1]["members"][0]["driver"], "vfio-pci");
}

#[test]
fn a_host_without_iommu_is_told_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let output = p2pctl(root.path(), &["groups"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    assert!(text(&output.stderr).contains("no IOMMU is in use"));
}

#[test]
fn failures_exit_1() {
    for args in [&["groups", "--colour"][..], &["nonsense"], &[]] {
        let output = p2pctl(Path::new("/"), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let output = p2pctl(Path::new("/no/such/directory"), &["groups"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "error: /no/such/directory is not a directory\n"
    );
}
