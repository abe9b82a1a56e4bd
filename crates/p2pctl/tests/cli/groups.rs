//! `p2pctl groups`.

use crate::run::on;

#[test]
fn groups_and_their_drivers() {
    let run = on("switch-without-acs", &["groups"]);
    assert_eq!(
        run.stdout,
        "\
GROUP  FUNCTION                         DRIVER
    0  00:00.0   host bridge 8086:29c0
    1  00:04.0   root port              pcieport
    2  00:04.1   root port              pcieport
    3  01:00.0   switch up              pcieport
    4  02:00.0   switch down            pcieport
       03:00.0   NVMe 1b36:0010         vfio-pci
    5  02:01.0   switch down            pcieport
       04:00.0   NVMe 1b36:0010         nvme
    6  05:00.0   NIC 8086:10c9          igb

! groups 4 and 5 are separate in Linux, but switch 01:00.0 routes between
  03:00.0 and 04:00.0 without the IOMMU.
  Do not give them to different tenants. p2pctl explain 03:00.0 04:00.0
"
    );
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}

#[test]
fn why_functions_are_together() {
    let run = on("client-amd", &["groups", "--why", "4:0.0", "07:00.1"]);
    assert_eq!(
        run.stdout,
        "\
GROUP  FUNCTION                   WHY
    7  02:00.0   USB 1022:43d5    came first
       02:00.1   SATA 1022:43c8   same device as 02:00.0, and has no ACS
       02:00.2   switch up        same device as 02:00.0, and has no ACS
       03:00.0   switch down      below 02:00.2, which has no ACS
       03:01.0   switch down      below 02:00.2, which has no ACS
       03:04.0   switch down      below 02:00.2, which has no ACS
       04:00.0   NIC 10ec:8168    below 03:00.0, which has no ACS
       05:00.0   NIC 8086:2723    below 03:01.0, which has no ACS
       06:00.0   NVMe 2646:5013   below 03:04.0, which has no ACS
    8  07:00.0   GPU 10de:2684    came first
       07:00.1   audio 10de:22ba  same device as 07:00.0, and has no ACS
"
    );
}

#[test]
fn groups_that_were_changed_since_boot_are_pointed_out() {
    let run = on("switch-joined", &["groups"]);
    assert!(
        run.stderr
            .contains("the groups of 01:00.0 02:00.0 02:01.0 03:00.0 04:00.0"),
        "{}",
        run.stderr
    );
    let json = on("switch-joined", &["groups", "--json"]).json();
    assert_eq!(json["different_at_boot"].as_array().unwrap().len(), 5);
    let json = on("switch-four-nvme", &["groups", "--json"]).json();
    assert_eq!(json["different_at_boot"].as_array().unwrap().len(), 0);
    assert_eq!(
        json["groups"][0]["functions"][0]["boot_reason"]["kind"],
        "new"
    );
}
