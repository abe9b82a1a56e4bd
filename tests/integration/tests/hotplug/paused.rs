//! A guest that is paused meanwhile.

use lab::live::Live;
use lab::protocol::Exit;

use crate::{FIRST, SECOND, add_both, lab, soft};

fn done(live: &Live<'_>, call: &str) {
    let (status, body) = live.call("PUT", call, None);
    assert_eq!(status, 204, "{call}: {body}");
}

#[test]
fn a_paused_guest_does_what_it_was_asked_when_it_goes_on() {
    let lab = lab();
    let mut live = Live::boot(&lab, "");
    add_both(&mut live);
    done(&live, "vm.pause");
    done(&live, "vm.resume");
    live.guest("true");

    done(&live, "vm.pause");
    live.remove(&soft("one"));
    live.told(&[("unplug-requested", "one")]);
    done(&live, "vm.resume");
    live.told(&[("removed", "one")]);
    let devices = live.guest("ls /sys/bus/pci/devices");
    assert!(
        devices.contains(SECOND) && !devices.contains(FIRST),
        "{devices}"
    );
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
