//! Texts from operators and clients: option lists, JSON of the API, policy files, domain files, command lines.

mod launch;

pub(crate) use launch::launch;

use std::fmt::{Debug, Display};
use std::str::{self, FromStr};

use iommu_group::policy::Policy;
use iommu_group::{AcsBits, Sbdf};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm_api::{
    ConsoleConfig, CpusConfig, DeviceConfig, MemoryConfig, MonitorTarget, P2pInfo, P2pWindows,
    PlatformConfig, Record, RemoveDevice, SerialConfig, VmConfig, VmInfo,
};

use domains::Config;

/// Parser for the domain file of `p2pctl reconcile`.
#[path = "../../crates/p2pctl/src/command/reconcile/config.rs"]
mod domains;

/// Splits the input into its first byte and the rest, if the rest is text.
fn choice(input: &[u8]) -> Option<(u8, &str)> {
    let (first, rest) = input.split_first()?;
    Some((*first, str::from_utf8(rest).ok()?))
}

/// An option list of the command line. Checks that it is refused with a reason, or that its written form parses to the
/// same value.
pub(crate) fn options(input: &[u8]) {
    let Some((kind, text)) = choice(input) else {
        return;
    };
    match kind % 10 {
        0..=2 => round_trip::<DeviceConfig>(text),
        3 => drop(parse::<CpusConfig>(text)),
        4 => drop(parse::<MemoryConfig>(text)),
        5 => drop(parse::<PlatformConfig>(text)),
        6 => drop(parse::<SerialConfig>(text)),
        7 => drop(parse::<ConsoleConfig>(text)),
        8 => drop(parse::<MonitorTarget>(text)),
        _ => {
            round_trip::<Sbdf>(text);
            let _ = parse::<AcsBits>(text);
        }
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Option<T> {
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn round_trip<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    if let Some(value) = parse::<T>(text) {
        let written = value.to_string();
        assert_eq!(parse(&written), Some(value), "{written}");
    }
}

/// JSON of the API. Checks that it is refused with a reason, or that its written form parses to the same value.
pub(crate) fn json(input: &[u8]) {
    let Some((kind, text)) = choice(input) else {
        return;
    };
    match kind % 8 {
        0 | 1 => {
            if let Some(mut config) = json_round_trip::<VmConfig>(text)
                && config.name_devices().is_ok()
            {
                let written = serde_json::to_string(&config).expect("a VM can be written");
                assert_eq!(json_round_trip(&written), Some(config), "{written}");
            }
        }
        2 => drop(json_round_trip::<DeviceConfig>(text)),
        3 => drop(json_round_trip::<VmInfo>(text)),
        4 => drop(json_round_trip::<P2pInfo>(text)),
        5 => drop(json_round_trip::<RemoveDevice>(text)),
        6 => drop(json_round_trip::<P2pWindows>(text)),
        _ => drop(json_round_trip::<Record>(text)),
    }
}

fn json_round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    match serde_json::from_str::<T>(text) {
        Ok(value) => {
            let written = serde_json::to_string(&value).expect("what was read can be written");
            let again: T = serde_json::from_str(&written).unwrap_or_else(|error| {
                panic!("what was written cannot be read: {error}: {written}");
            });
            assert_eq!(again, value, "{written}");
            Some(value)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// A policy file. Checks that it is refused with a reason that names the file, or that every consent in it has its
/// position in the file.
pub(crate) fn policy(input: &[u8]) {
    const NAME: &str = "policy.toml";
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match Policy::parse(NAME, text) {
        Ok(mut policy) => {
            let exposed: Vec<Sbdf> = policy.exposed().collect();
            for function in &exposed {
                let consent = policy.consent(*function).expect("it is exposed");
                assert!(consent.to_string().contains(NAME), "{consent}");
            }
            policy.expose(exposed);
        }
        Err(error) => assert!(error.to_string().contains(NAME), "{error}"),
    }
}

/// A domain file. Checks that it is refused with a reason, or that it requests joined and isolated functions.
pub(crate) fn domains(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match toml::from_str::<Config>(text) {
        Ok(config) => {
            let (goals, _) = config.desired();
            assert!(goals.acs.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
