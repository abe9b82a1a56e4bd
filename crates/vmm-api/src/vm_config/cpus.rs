//! The vCPUs of a VM.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::json;
use crate::options::{OptionError, Options};

/// Largest number of vCPUs.
const MAX_CPUS: u8 = 16;

/// vCPUs; on the command line `boot=2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "json::CpusFields", into = "json::CpusFields")]
pub struct CpusConfig {
    boot: u8,
}

impl CpusConfig {
    /// Number of vCPUs, 1 to 16. vCPUs cannot be added later.
    pub fn boot_vcpus(self) -> u8 {
        self.boot
    }
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self { boot: 1 }
    }
}

impl TryFrom<json::CpusFields> for CpusConfig {
    type Error = String;

    fn try_from(fields: json::CpusFields) -> Result<Self, String> {
        let json::CpusFields {
            boot_vcpus: boot,
            max_vcpus: max,
            ..
        } = fields;
        if !(1..=u32::from(MAX_CPUS)).contains(&boot) {
            return Err(format!("boot_vcpus: {boot} is not from 1 to {MAX_CPUS}"));
        }
        if max != boot {
            return Err(format!(
                "max_vcpus: {max} differs from boot_vcpus, {boot}: vCPUs cannot be added later"
            ));
        }
        let boot = u8::try_from(boot).map_err(|error| error.to_string())?;
        Ok(Self { boot })
    }
}

impl From<CpusConfig> for json::CpusFields {
    fn from(cpus: CpusConfig) -> Self {
        Self::of(cpus.boot)
    }
}

impl FromStr for CpusConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let options = Options::parse(text, &["boot", "max"])?;
        let boot = options.required("boot")?;
        let bad = |key: &str, value: &str, expected: String| OptionError::BadValue {
            key: key.into(),
            value: value.into(),
            expected,
        };
        let count = match boot.parse() {
            Ok(count @ 1..=MAX_CPUS) => count,
            _ => {
                let expected = format!("a number of vCPUs from 1 to {MAX_CPUS}");
                return Err(bad("boot", boot, expected));
            }
        };
        match options.text("max") {
            Some(max) if max.parse() != Ok(count) => {
                let expected = format!("{count}, as boot is: vCPUs cannot be added later");
                Err(bad("max", max, expected))
            }
            _ => Ok(Self { boot: count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_one_to_sixteen() {
        for (text, boot) in [("boot=1", 1), ("boot=16", 16), ("boot=2,max=2", 2)] {
            assert_eq!(text.parse(), Ok(CpusConfig { boot }));
        }
        for count in ["0", "17", "300", "two"] {
            let error = format!("boot={count}").parse::<CpusConfig>().unwrap_err();
            let expected =
                format!("option \"boot\": \"{count}\" is not a number of vCPUs from 1 to 16");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn max_above_boot_is_refused() {
        let error = "boot=2,max=4".parse::<CpusConfig>().unwrap_err();
        assert!(error.to_string().contains("cannot be added later"));
        let json = r#"{"boot_vcpus":2,"max_vcpus":4}"#;
        let error = serde_json::from_str::<CpusConfig>(json).unwrap_err();
        assert!(error.to_string().contains("max_vcpus: 4"), "{error}");
    }
}
