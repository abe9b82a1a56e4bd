//! What an endpoint has besides DMA, in the host and as a guest has it.

use std::collections::BTreeMap;

use lab::Vm;
use lab::protocol::Exit;
use lab::report::Finding;

use crate::{F, LAB, unbind};

/// What was found of each part of a device.
fn features(console: &str) -> BTreeMap<String, String> {
    let findings = Finding::in_console(console).into_iter();
    let features = findings.filter_map(|finding| match finding {
        Finding::Feature { name, value, .. } => Some((name, value)),
        _ => None,
    });
    features.collect()
}

/// What the host and a guest see alike.
const BOTH: [(&str, &str); 3] = [
    ("memory", "8192 MiB"),
    ("d3hot", "nothing asleep, 0x14542414c awake"),
    ("flr", "0xf1e before, 0x0 after"),
];

fn assert_has(features: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    let expected = BOTH.iter().chain(expected);
    let expected = expected.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    assert_eq!(*features, expected.collect());
}

#[test]
fn the_host_uses_every_part_of_an_endpoint() {
    let lab = LAB.turn();
    unbind(&lab, &[F]);
    let output = lab.run(["guest-probe", "features", F]).unwrap();
    let seen = features(&output.ok().unwrap());
    assert_has(
        &seen,
        &[
            ("io", "16 bytes, wrote 0x10ba1234, read 0x10ba1234"),
            ("rom", "8192 bytes, aa55, for 1af4:10f0"),
        ],
    );
}

#[test]
fn a_guest_has_the_memory_the_resets_and_the_vectors_of_an_endpoint_but_neither_io_bar_nor_rom() {
    let lab = LAB.turn();
    lab.bind_vfio(F).unwrap();
    let vm = Vm::new("guest-probe features ; guest-probe vectors").device(F);
    let output = lab.vm(&vm).run().unwrap();
    unbind(&lab, &[F]);
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    let seen = features(&output.stdout);
    assert_has(
        &seen,
        &[
            ("io", "none"),
            ("rom", "none"),
            ("vectors", "64 of 64 fired"),
        ],
    );
}
