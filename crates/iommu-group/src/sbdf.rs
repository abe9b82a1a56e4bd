//! Address of a PCI function (SBDF).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The address of a PCI function: segment (Linux: domain), bus, device, function.
///
/// The text form is the function's name in sysfs, `0000:03:00.0`. Segments above `0xffff` exist (Linux numbers Intel
/// VMD endpoints from `0x10000`) and are written with as many digits as necessary. The short form without a segment
/// means segment 0, as in `lspci`.
///
/// ```
/// use iommu_group::Sbdf;
///
/// let nic: Sbdf = "03:00.1".parse()?;
/// assert_eq!(nic.to_string(), "0000:03:00.1");
/// assert_eq!((nic.bus(), nic.device(), nic.function()), (3, 0, 1));
/// # Ok::<(), iommu_group::SbdfError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf {
    domain: u32,
    bus: u8,
    devfn: u8,
}

impl Sbdf {
    /// The function at `domain:bus:device.function`. Returns an error if `device` is above 31 or `function` above 7.
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Result<Self, SbdfError> {
        if device > 31 {
            return Err(SbdfError::Device {
                text: format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"),
                part: format!("{device:02x}"),
            });
        }
        if function > 7 {
            return Err(SbdfError::Function {
                text: format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"),
                part: function.to_string(),
            });
        }
        Ok(Self::from_devfn(domain, bus, (device << 3) | function))
    }

    /// The function with the number `devfn` (device in bits 7:3, function in bits 2:0) on a bus.
    #[must_use]
    pub const fn from_devfn(domain: u32, bus: u8, devfn: u8) -> Self {
        Self { domain, bus, devfn }
    }

    /// Segment number; Linux calls it the PCI domain.
    #[must_use]
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0 to 31. With ARI there is no device number; this is then the upper part of the function number,
    /// as Linux prints it.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device and function in one byte, as in a requester ID.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.devfn
    }

    /// Requester ID: bus in bits 15:8, device and function in bits 7:0 (PCIe r6.0 §2.2.6.2).
    #[must_use]
    pub const fn requester_id(self) -> u16 {
        u16::from_be_bytes([self.bus, self.devfn])
    }
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain,
            self.bus,
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Addresses, separated by commas.
pub(crate) struct List<'a>(pub(crate) &'a [Sbdf]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, sbdf) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{sbdf}")?;
        }
        Ok(())
    }
}

/// PCI address parse error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SbdfError {
    /// The text does not have the shape `[domain:]bus:device.function`.
    #[error(
        "`{text}` is not a PCI address: expected domain:bus:device.function, such as 0000:03:00.0"
    )]
    Form {
        /// The whole text.
        text: String,
    },
    /// The segment is not a hexadecimal number of up to 32 bits.
    #[error("`{text}` is not a PCI address: the domain `{part}` is not 1 to 8 hexadecimal digits")]
    Domain {
        /// The whole text.
        text: String,
        /// The invalid part.
        part: String,
    },
    /// The bus is not a hexadecimal number up to `ff`.
    #[error("`{text}` is not a PCI address: the bus `{part}` is not 1 or 2 hexadecimal digits")]
    Bus {
        /// The whole text.
        text: String,
        /// The invalid part.
        part: String,
    },
    /// The device is not a hexadecimal number up to `1f`.
    #[error("`{text}` is not a PCI address: the device `{part}` is not hexadecimal 00 to 1f")]
    Device {
        /// The whole text.
        text: String,
        /// The invalid part.
        part: String,
    },
    /// The function is not a digit from 0 to 7.
    #[error("`{text}` is not a PCI address: the function `{part}` is not a digit from 0 to 7")]
    Function {
        /// The whole text.
        text: String,
        /// The invalid part.
        part: String,
    },
}

/// Parses a hexadecimal number of 1 to `max_digits` digits, without a sign or prefix.
fn hex(part: &str, max_digits: usize) -> Option<u32> {
    let digits = part.bytes().all(|b| b.is_ascii_hexdigit());
    if part.is_empty() || part.len() > max_digits || !digits {
        return None;
    }
    u32::from_str_radix(part, 16).ok()
}

impl FromStr for Sbdf {
    type Err = SbdfError;

    fn from_str(text: &str) -> Result<Self, SbdfError> {
        let form = || SbdfError::Form {
            text: text.to_owned(),
        };
        let (rest, function_part) = text.rsplit_once('.').ok_or_else(form)?;
        let (rest, device_part) = rest.rsplit_once(':').ok_or_else(form)?;
        let (domain_part, bus_part) = match rest.rsplit_once(':') {
            Some((domain, bus)) => (Some(domain), bus),
            None => (None, rest),
        };
        let owned = |part: &str| (text.to_owned(), part.to_owned());
        let domain = match domain_part {
            None => 0,
            Some(part) => hex(part, 8).ok_or_else(|| {
                let (text, part) = owned(part);
                SbdfError::Domain { text, part }
            })?,
        };
        let bus = hex(bus_part, 2)
            .and_then(|n| u8::try_from(n).ok())
            .ok_or_else(|| {
                let (text, part) = owned(bus_part);
                SbdfError::Bus { text, part }
            })?;
        let device = hex(device_part, 2)
            .and_then(|n| u8::try_from(n).ok())
            .filter(|n| *n < 32)
            .ok_or_else(|| {
                let (text, part) = owned(device_part);
                SbdfError::Device { text, part }
            })?;
        let function = hex(function_part, 1)
            .and_then(|n| u8::try_from(n).ok())
            .filter(|n| *n < 8)
            .ok_or_else(|| {
                let (text, part) = owned(function_part);
                SbdfError::Function { text, part }
            })?;
        Ok(Self::from_devfn(domain, bus, (device << 3) | function))
    }
}

impl Serialize for Sbdf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sbdf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Sbdf;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a PCI address such as 0000:03:00.0")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Sbdf, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(domain: u32, bus: u8, device: u8, function: u8) -> Sbdf {
        Sbdf::new(domain, bus, device, function).unwrap()
    }

    #[test]
    fn text_and_address_are_one() {
        for (text, address) in [
            ("0000:00:00.0", at(0, 0, 0, 0)),
            ("0000:03:1f.7", at(0, 3, 31, 7)),
            ("ffff:ff:10.1", at(0xffff, 0xff, 16, 1)),
            ("10000:e1:00.0", at(0x1_0000, 0xe1, 0, 0)),
            ("ffffffff:00:00.0", at(u32::MAX, 0, 0, 0)),
        ] {
            assert_eq!(text.parse(), Ok(address));
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn the_domain_may_be_left_out_and_digits_may_be_few() {
        for (text, full) in [
            ("03:00.0", "0000:03:00.0"),
            ("3:0.0", "0000:03:00.0"),
            ("0:3:0.0", "0000:03:00.0"),
            ("00010000:03:00.0", "10000:03:00.0"),
            ("AB:0C.7", "0000:ab:0c.7"),
        ] {
            assert_eq!(text.parse::<Sbdf>().unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn an_error_names_the_part_that_is_wrong() {
        let part = |text: &str| match text.parse::<Sbdf>().unwrap_err() {
            SbdfError::Form { .. } => ("form", String::new()),
            SbdfError::Domain { part, .. } => ("domain", part),
            SbdfError::Bus { part, .. } => ("bus", part),
            SbdfError::Device { part, .. } => ("device", part),
            SbdfError::Function { part, .. } => ("function", part),
        };
        for (text, kind, bad) in [
            ("", "form", ""),
            ("03:00", "form", ""),
            ("3.0", "form", ""),
            ("100000000:03:00.0", "domain", "100000000"),
            ("+000:03:00.0", "domain", "+000"),
            (":03:00.0", "domain", ""),
            ("0:0:03:00.0", "domain", "0:0"),
            ("0000:100:00.0", "bus", "100"),
            ("0000:0x:00.0", "bus", "0x"),
            (" 03:00.0", "bus", " 03"),
            ("0000:03:20.0", "device", "20"),
            ("0000:03:-1.0", "device", "-1"),
            ("0000:03:00.8", "function", "8"),
            ("0000:03:00.00", "function", "00"),
            ("0000:03:00.", "function", ""),
            ("0000:03:00.0\n", "function", "0\n"),
            ("0000:03:00.é", "function", "é"),
        ] {
            assert_eq!(part(text), (kind, bad.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(matches!(
            Sbdf::new(0, 0, 32, 0),
            Err(SbdfError::Device { .. })
        ));
        assert!(matches!(
            Sbdf::new(0, 0, 0, 8),
            Err(SbdfError::Function { .. })
        ));
    }

    #[test]
    fn order_is_that_of_the_bus() {
        let mut all: Vec<Sbdf> = ["10000:00:00.0", "01:00.0", "00:1f.3", "00:02.0", "00:1f.0"]
            .iter()
            .map(|t| t.parse().unwrap())
            .collect();
        all.sort();
        let names: Vec<String> = all.iter().map(Sbdf::to_string).collect();
        assert_eq!(
            names,
            [
                "0000:00:02.0",
                "0000:00:1f.0",
                "0000:00:1f.3",
                "0000:01:00.0",
                "10000:00:00.0"
            ]
        );
    }

    #[test]
    fn serde_writes_text() {
        let sbdf = at(0x1_0000, 3, 4, 5);
        let json = serde_json::to_string(&sbdf).unwrap();
        assert_eq!(json, "\"10000:03:04.5\"");
        assert_eq!(serde_json::from_str::<Sbdf>(&json).unwrap(), sbdf);
        let error = serde_json::from_str::<Sbdf>("\"03:00.9\"").unwrap_err();
        assert!(error.to_string().contains("function `9`"), "{error}");
    }
}
