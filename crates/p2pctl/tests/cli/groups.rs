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
"
    );
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}
