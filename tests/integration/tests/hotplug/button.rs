//! The guest's power button.

use lab::live::Live;
use lab::protocol::Exit;

use crate::lab;

/// A key event of the power key, pressed (linux include/uapi/linux/input-event-codes.h: EV_KEY, KEY_POWER), after its
/// time of 16 bytes.
const POWER_KEY_PRESSED: &str = "01 00 74 00 01 00 00 00";

#[test]
fn a_guest_sees_its_power_button_pressed() {
    let lab = lab();
    let mut live = Live::boot(&lab, "");
    live.guest(
        "modprobe button ; modprobe evdev ; until [ -c /dev/input/event0 ]; do usleep 20000; done",
    );
    let inputs = live.guest("cat /proc/bus/input/devices");
    assert!(inputs.contains("Power Button"), "{inputs}");
    // dd listens before the button is pressed. It is no child of the console's shell, which takes the interruption of a
    // read by a child that ends for the end of its input.
    live.guest(
        "sh -c 'dd if=/dev/input/event0 of=/tmp/key bs=24 count=1 2>/dev/null &' ; \
         until ls -l /proc/$(pidof dd)/fd | grep -q event0; do usleep 20000; done",
    );
    let (status, body) = live.call("PUT", "vm.power-button", None);
    assert_eq!(status, 204, "{body}");
    let key = live.guest("until [ -s /tmp/key ]; do usleep 20000; done ; hexdump -C /tmp/key");
    assert!(key.contains(POWER_KEY_PRESSED), "{key}");
    assert_eq!(live.power_off().exit, Exit::Code(0));
}
