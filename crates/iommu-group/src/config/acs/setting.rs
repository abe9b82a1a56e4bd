//! Values of the ACS registers of a port.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AcsBits, AcsRegisters, EgressVector};

/// Controls that keep requests from bypassing the IOMMU while they are on.
const ISOLATION: AcsBits = AcsBits::from_bits_retain(
    AcsBits::SV.bits()
        | AcsBits::TB.bits()
        | AcsBits::RR.bits()
        | AcsBits::CR.bits()
        | AcsBits::UF.bits()
        | AcsBits::EC.bits(),
);

/// The ACS control register of a port, with its egress control vector if egress control is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcsSetting {
    control: AcsBits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    egress: Option<EgressVector>,
}

impl AcsSetting {
    /// Creates a setting. Without egress control the vector has no effect and is dropped.
    #[must_use]
    pub fn new(control: AcsBits, egress: Option<EgressVector>) -> Self {
        Self {
            control,
            egress: egress.filter(|_| control.contains(AcsBits::EC)),
        }
    }

    /// The control register.
    #[must_use]
    pub fn control(&self) -> AcsBits {
        self.control
    }

    /// The egress control vector. `None` if egress control is off or the vector could not be read.
    #[must_use]
    pub fn egress(&self) -> Option<EgressVector> {
        self.egress
    }

    /// Whether requests that cannot bypass the IOMMU with the setting `was` can bypass it with this one.
    #[must_use]
    pub fn is_less_strict_than(&self, was: &Self) -> bool {
        let lost = was.control & !self.control & ISOLATION;
        // DT gives translated requests the direct route. EC replaces redirection by a vector (PCIe r6.0 §6.12.3).
        let gained = self.control & !was.control & (AcsBits::DT | AcsBits::EC);
        let opened = match (was.egress, self.egress) {
            (Some(was), Some(is)) => !is.stops_all_of(&was),
            // The vector can no longer be read.
            (Some(_), None) => true,
            (None, _) => false,
        };
        !lost.is_empty()
            || gained.contains(AcsBits::DT)
            || (gained.contains(AcsBits::EC) && was.control.contains(AcsBits::RR))
            || opened
    }
}

impl AcsRegisters {
    /// The setting held by these registers.
    #[must_use]
    pub fn setting(&self) -> AcsSetting {
        AcsSetting::new(self.control, self.egress)
    }
}

impl fmt::Display for AcsSetting {
    /// Formats the setting as `001d`, or as `0031 with egress vector fffffffd`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.control)?;
        let Some(vector) = &self.egress else {
            return Ok(());
        };
        f.write_str(" with egress vector")?;
        let mut words = vector.words();
        words.try_for_each(|word| write!(f, " {word:08x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(control: &str, egress: Option<u32>) -> AcsSetting {
        let like: EgressVector =
            serde_json::from_str(r#"{"size": 32, "words": ["00000000"]}"#).unwrap();
        let egress = egress.map(|word| like.with_words(&[word]).unwrap());
        AcsSetting::new(control.parse().unwrap(), egress)
    }

    #[test]
    fn what_is_less_strict() {
        for (was, is, expected) in [
            ("001d", "0011", true),
            ("001d", "0000", true),
            ("001d", "001c", true),
            ("001d", "005d", true),
            ("001d", "003d", true),
            ("0031", "0011", true),
            ("001d", "001f", false),
            ("0011", "001d", false),
            ("0011", "0031", false),
            ("005d", "001d", false),
        ] {
            let (was, is) = (setting(was, None), setting(is, None));
            assert_eq!(is.is_less_strict_than(&was), expected, "{was} {is}");
        }
    }

    #[test]
    fn a_vector_that_opens_a_way_is_less_strict_while_egress_control_is_on() {
        for (was, is, expected) in [
            (("0031", 0b1110), ("0031", 0b1100), true),
            (("0031", 0b1110), ("0031", 0b0111), true),
            (("0031", 0b1110), ("0031", 0b1111), false),
            (("0031", 0b1110), ("0035", 0b1110), false),
            // It has no effect.
            (("0011", 0b1110), ("0011", 0), false),
            (("0031", 0b1110), ("0011", 0b1110), true),
        ] {
            let [was, is] = [was, is].map(|(control, vector)| setting(control, Some(vector)));
            assert_eq!(is.is_less_strict_than(&was), expected, "{was} {is}");
        }
        assert!(setting("31", None).is_less_strict_than(&setting("31", Some(0))));
    }

    #[test]
    fn settings_in_words() {
        assert_eq!(setting("1d", Some(7)).to_string(), "001d");
        assert_eq!(
            setting("31", Some(7)).to_string(),
            "0031 with egress vector 00000007"
        );
    }
}
