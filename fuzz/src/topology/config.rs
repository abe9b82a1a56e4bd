//! Arbitrary bytes as configuration space.

use iommu_group::{Config, ConfigSpace};

/// Most faults that are noted: one for each list, and one for ACS.
const MOST_FAULTS: usize = 3;

/// A configuration space. Decoding ends, notes few faults, and gives the same whether all bytes are read or only the
/// needed ones.
pub(crate) fn config(input: &[u8]) {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    // What is shown to a reader: these bytes and zeros up to a size that Linux has, or these bytes alone.
    let mut bytes = bytes.to_vec();
    match size % 8 {
        0 => bytes.resize(256, 0),
        1 => bytes.resize(64, 0),
        2 => {}
        _ => bytes.resize(4096, 0),
    }
    bytes.truncate(4096);

    let whole = ConfigSpace::new(&bytes);
    let all = Config::decode(&whole);
    assert!(all.faults.len() <= MOST_FAULTS);
    if let Some(egress) = all.acs.registers().and_then(|acs| acs.egress) {
        for number in 0..=u8::MAX {
            assert_eq!(
                egress.stops(number).is_some(),
                u16::from(number) < egress.size()
            );
        }
    }

    // Reading only what is needed comes to the same. Linux shows 256 bytes of what is not PCI Express.
    let needed = ConfigSpace::collect(bytes.as_slice());
    assert!(needed.runs().map(|(_, run)| run.len()).sum::<usize>() <= bytes.len());
    for (start, run) in needed.runs() {
        let start = usize::from(start);
        assert_eq!(bytes.get(start..start + run.len()), Some(run));
    }
    if all.express.is_some() || bytes.len() <= 256 {
        let found = Config::decode(&needed);
        if within_256(&bytes, &all) {
            assert_eq!(found, all);
        } else {
            assert_eq!((found.header, found.acs), (all.header, all.acs));
        }
    }
}

/// Whether no capability of the first list runs on into the extended ones, where only broken devices have it.
fn within_256(bytes: &[u8], all: &Config) -> bool {
    let start = Config::decode(&ConfigSpace::new(bytes.get(..256).unwrap_or(bytes)));
    let lists = |config: &Config| {
        (
            config.express,
            config.power_management,
            config.advanced_features,
            config.msi,
            config.msi_x,
        )
    };
    lists(&start) == lists(all)
}
