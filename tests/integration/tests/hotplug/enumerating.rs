//! Devices that come while the guest looks at others, and has closed ports for that.

use lab::live::Live;
use lab::protocol::Exit;
use serde_json::Value;

use crate::{FIRST, SECOND, lab, soft};

/// What a BAR of a device occupies in the guest: first address and the one after the last.
type Extent = (u64, u64);

/// What the VMM says the BARs of a device occupy.
fn extents(live: &Live<'_>, id: &str) -> Vec<Extent> {
    let (status, info) = live.call("GET", "vm.info", None);
    assert_eq!(status, 200, "{info}");
    let info: Value = serde_json::from_str(&info).unwrap();
    let resources = info["device_tree"][id]["resources"].as_array().unwrap();
    let bars = resources.iter().map(|resource| {
        let bar = |key: &str| resource["PciBar"][key].as_u64().unwrap();
        (bar("base"), bar("base") + bar("size"))
    });
    bars.collect()
}

#[track_caller]
fn assert_apart(one: &[Extent], two: &[Extent]) {
    assert!(!one.is_empty() && !two.is_empty());
    let meet = |a: &Extent| two.iter().any(|b| a.0 < b.1 && b.0 < a.1);
    assert!(!one.iter().any(meet), "{one:x?} {two:x?}");
}

/// Adds a device that takes no part in P2P, and so gets a port of its own.
fn add(live: &mut Live<'_>, id: &str, bdf: &str) {
    let (status, body) = live.add(id, bdf, false);
    assert_eq!(status, 200, "{body}");
    live.told(&[("added", id)]);
}

/// Waits until the guest's driver has both drives: no BAR is being sized any more, for which a guest turns decode off.
fn wait_for_both(live: &mut Live<'_>) {
    live.guest("until [ $(ls /dev/nvme?n1 | wc -l) = 2 ]; do usleep 50000; done");
}

/// Both drives answer.
fn assert_both_read(live: &mut Live<'_>) {
    wait_for_both(live);
    let read = "for d in /dev/nvme?n1; do dd if=$d of=/dev/null bs=4096 count=1 iflag=direct && echo read; done";
    let text = live.guest(read);
    assert_eq!(text.matches("read").count(), 2, "{text}");
}

fn config_write(offset: u16, bytes: &str) -> String {
    format!("printf '{bytes}' | dd of=$P/config bs=1 seek={offset} conv=notrunc 2>/dev/null")
}

#[test]
fn a_device_comes_to_a_place_of_its_own_while_the_guest_looks_at_others() {
    const ROUNDS: u32 = 3;
    let lab = lab();
    let mut live = Live::boot(&lab, "");
    add(&mut live, "one", FIRST);
    live.guest("while ! [ -b /dev/nvme0n1 ]; do usleep 50000; done");
    let one = extents(&live, "one");
    // The port above it.
    live.guest(
        "P=/sys/bus/pci/devices/$(basename $(dirname $(readlink -f /sys/class/nvme/nvme0/device)))",
    );

    // In the middle of the look: memory decode is off, and the upper half of the prefetchable base is all ones.
    live.guest(&format!(
        "head -c 64 $P/config > /tmp/port ; {} ; {}",
        config_write(4, "\\004\\000"),
        config_write(0x28, "\\377\\377\\377\\377")
    ));
    assert_eq!(extents(&live, "one"), [], "nothing leads to it now");
    add(&mut live, "two", SECOND);
    wait_for_both(&mut live);
    assert_apart(&one, &extents(&live, "two"));
    let restore = |offset: u16, count: u16| {
        format!(
            "dd if=/tmp/port of=$P/config bs=1 skip={offset} seek={offset} count={count} conv=notrunc 2>/dev/null"
        )
    };
    live.guest(&format!("{} ; {}", restore(0x28, 4), restore(4, 2)));
    assert_eq!(extents(&live, "one"), one);
    assert_both_read(&mut live);

    // A guest that forgets the port and finds it again, over and over.
    live.guest(
        "touch /tmp/look ; while [ -e /tmp/look ]; do \
         echo 1 > $P/remove ; echo 1 > /sys/bus/pci/rescan ; done & true",
    );
    for _ in 0..ROUNDS {
        live.remove(&soft("two"));
        live.told(&[("unplug-requested", "two"), ("removed", "two")]);
        add(&mut live, "two", SECOND);
    }
    live.guest("rm /tmp/look ; wait");
    assert_both_read(&mut live);
    assert_apart(&extents(&live, "one"), &extents(&live, "two"));
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
