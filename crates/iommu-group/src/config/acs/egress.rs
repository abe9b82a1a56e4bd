//! The egress control vector.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::ConfigSpace;

/// The egress control vector: one bit per port number of the switch, or per function (group) number of the device (PCIe
/// r6.0 §7.7.11.4). A set bit stops requests to that port or function: with request redirect they are redirected
/// upstream, otherwise they are blocked.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "Text", into = "Text")]
pub struct EgressVector {
    words: [u32; 8],
    size: u16,
}

impl EgressVector {
    /// Reads a vector with the size field `size_field`. The value 0 means 256.
    pub(super) fn decode(space: &ConfigSpace, at: u16, size_field: u8) -> Option<Self> {
        let size = if size_field == 0 {
            256
        } else {
            u16::from(size_field)
        };
        let mut words = [0; 8];
        let used = usize::from(size.div_ceil(32));
        for (word, index) in words.iter_mut().zip(0_u16..).take(used) {
            *word = space.u32(at.checked_add(index.checked_mul(4)?)?)?;
        }
        Some(Self { words, size })
    }

    /// Number of ports or functions covered by the vector, 1 to 256.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether requests to this port or function number are stopped. `None` if the vector does not cover the number.
    #[must_use]
    pub fn stops(&self, number: u8) -> Option<bool> {
        if u16::from(number) >= self.size {
            return None;
        }
        let word = self.words.get(usize::from(number / 32))?;
        Some(word & (1 << (number % 32)) != 0)
    }

    /// A vector of the same size that stops requests to all other numbers.
    #[must_use]
    pub fn open_only_to(&self, numbers: &[u8]) -> Self {
        let mut words = [0; 8];
        for number in (0..=u8::MAX).filter(|number| u16::from(*number) < self.size) {
            let stop = !numbers.contains(&number);
            if let Some(word) = words.get_mut(usize::from(number / 32)) {
                *word |= u32::from(stop) << (number % 32);
            }
        }
        Self {
            words,
            size: self.size,
        }
    }

    /// A vector of the same size that stops no requests.
    #[must_use]
    pub fn cleared(&self) -> Self {
        Self {
            words: [0; 8],
            size: self.size,
        }
    }

    /// A vector of the same size with these registers. `None` if their number differs.
    #[must_use]
    pub fn with_words(&self, words: &[u32]) -> Option<Self> {
        if words.len() != self.words().count() {
            return None;
        }
        let mut vector = self.cleared();
        for (word, to) in vector.words.iter_mut().zip(words) {
            *word = *to;
        }
        Some(vector)
    }

    /// Whether this vector stops all requests that `other` stops.
    #[must_use]
    pub fn stops_all_of(&self, other: &Self) -> bool {
        self.size == other.size
            && self
                .words
                .iter()
                .zip(other.words)
                .all(|(own, other)| other & !own == 0)
    }

    /// The registers, in the order of their offsets.
    pub fn words(&self) -> impl Iterator<Item = u32> {
        self.words
            .into_iter()
            .take(usize::from(self.size.div_ceil(32)))
    }
}

impl fmt::Debug for EgressVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EgressVector({} of", self.size)?;
        self.words().try_for_each(|word| write!(f, " {word:08x}"))?;
        f.write_str(")")
    }
}

/// Text form of a vector in a file.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Text {
    size: u16,
    words: Vec<String>,
}

impl From<EgressVector> for Text {
    fn from(vector: EgressVector) -> Self {
        Self {
            size: vector.size,
            words: vector.words().map(|word| format!("{word:08x}")).collect(),
        }
    }
}

impl TryFrom<Text> for EgressVector {
    type Error = String;

    fn try_from(text: Text) -> Result<Self, String> {
        let mut words = [0; 8];
        if !(1..=256).contains(&text.size)
            || text.words.len() != usize::from(text.size.div_ceil(32))
        {
            return Err(format!(
                "an egress control vector of {} in {} words",
                text.size,
                text.words.len()
            ));
        }
        for (word, digits) in words.iter_mut().zip(&text.words) {
            *word =
                u32::from_str_radix(digits, 16).map_err(|error| format!("`{digits}`: {error}"))?;
        }
        Ok(Self {
            words,
            size: text.size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(size_field: u8, bytes: &[u8]) -> EgressVector {
        EgressVector::decode(&ConfigSpace::new(bytes), 0, size_field).unwrap()
    }

    #[test]
    fn vectors_of_every_size() {
        // (size field, ports covered)
        for (field, size) in [(0, 256), (1, 1), (8, 8), (32, 32), (33, 33), (255, 255)] {
            let vector = vector(field, &[0xff; 32]);
            assert_eq!(vector.size(), size);
            let last = u8::try_from(size - 1).unwrap();
            assert_eq!(vector.stops(last), Some(true), "{size}");
            if let Some(beyond) = last.checked_add(1) {
                assert_eq!(vector.stops(beyond), None, "{size}");
            }
        }
        assert!(EgressVector::decode(&ConfigSpace::new(&[0xff; 31]), 0, 0).is_none());
    }

    #[test]
    fn a_vector_tells_ports_apart() {
        let vector = vector(64, &[0x02, 0, 0, 0, 0, 0, 0, 0x80]);
        let stopped: Vec<u8> = (0..64)
            .filter(|port| vector.stops(*port).unwrap())
            .collect();
        assert_eq!(stopped, [1, 63]);
    }

    #[test]
    fn open_to_a_few() {
        let vector = vector(34, &[0; 8]).open_only_to(&[1, 33, 200]);
        let open: Vec<u8> = (0..34)
            .filter(|port| !vector.stops(*port).unwrap())
            .collect();
        assert_eq!(open, [1, 33]);
        assert_eq!(
            vector.words().collect::<Vec<_>>(),
            [0xffff_fffd, 0x0000_0001]
        );
        assert_eq!(vector.cleared().words().collect::<Vec<_>>(), [0, 0]);
        assert_eq!(vector.cleared().size(), 34);
    }

    #[test]
    fn text() {
        let vector = vector(34, &[0; 8]).open_only_to(&[1]);
        let json = serde_json::to_string(&vector).unwrap();
        assert_eq!(json, r#"{"size":34,"words":["fffffffd","00000003"]}"#);
        assert_eq!(serde_json::from_str::<EgressVector>(&json).unwrap(), vector);
        for wrong in [
            r#"{"size":0,"words":[]}"#,
            r#"{"size":257,"words":["0","0","0","0","0","0","0","0","0"]}"#,
            r#"{"size":34,"words":["0"]}"#,
            r#"{"size":4,"words":["x"]}"#,
        ] {
            assert!(
                serde_json::from_str::<EgressVector>(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
