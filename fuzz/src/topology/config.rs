//! Configuration spaces from arbitrary bytes.

use iommu_group::{Config, ConfigSpace};

/// Maximum number of errors that are recorded: one for each list, and one for ACS.
const MOST_FAULTS: usize = 3;

/// A configuration space. Checks that decoding ends, records few errors, and gives the same result whether all bytes
/// are read or only the needed ones.
pub(crate) fn config(input: &[u8]) {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    // The bytes that a reader sees: these bytes, followed by zeros up to a size that Linux provides or alone.
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

    // Reading only the needed bytes gives the same result. Linux provides 256 bytes for a function without PCI Express.
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

/// Whether no capability of the first list extends into the extended capabilities, as only in broken devices.
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
