//! The memory of a VM.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::json;
use crate::options::{OptionError, Options};

/// Granularity of guest memory: RAM regions are whole pages.
const PAGE_BYTES: u64 = 4096;

/// Guest memory; on the command line `size=512M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "json::MemoryFields", into = "json::MemoryFields")]
pub struct MemoryConfig {
    size_bytes: u64,
}

impl MemoryConfig {
    /// Size: above zero, and whole pages.
    pub fn size_bytes(self) -> u64 {
        self.size_bytes
    }

    fn new(size_bytes: u64) -> Option<Self> {
        let possible = size_bytes > 0 && size_bytes.is_multiple_of(PAGE_BYTES);
        possible.then_some(Self { size_bytes })
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size_bytes: 512 << 20,
        }
    }
}

impl TryFrom<json::MemoryFields> for MemoryConfig {
    type Error = String;

    fn try_from(fields: json::MemoryFields) -> Result<Self, String> {
        let size = fields.size;
        Self::new(size)
            .ok_or_else(|| format!("size: {size} is not above zero and a multiple of 4096 bytes"))
    }
}

impl From<MemoryConfig> for json::MemoryFields {
    fn from(memory: MemoryConfig) -> Self {
        Self::of(memory.size_bytes)
    }
}

impl FromStr for MemoryConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "a size in bytes or with a suffix K, M or G, above zero and a multiple of 4096 bytes";
        let options = Options::parse(text, &["size"])?;
        let size = options.required("size")?;
        parse_size(size)
            .and_then(Self::new)
            .ok_or_else(|| OptionError::BadValue {
                key: "size".into(),
                value: size.into(),
                expected: EXPECTED.into(),
            })
    }
}

/// Parses `512M`, `1G`, `4096K` or a plain number. Returns `None` for other text and on overflow.
fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.strip_suffix(['K', 'k']) {
        Some(number) => (number, 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 20),
            None => match text.strip_suffix(['G', 'g']) {
                Some(number) => (number, 30),
                None => (text, 0),
            },
        },
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_size_takes_suffixes() {
        for (text, size_bytes) in [
            ("size=8192", 8192),
            ("size=128K", 128 << 10),
            ("size=512M", 512 << 20),
            ("size=5G", 5 << 30),
        ] {
            assert_eq!(text.parse(), Ok(MemoryConfig { size_bytes }), "{text}");
        }
    }

    #[test]
    fn bad_memory_size_is_named() {
        for size in [
            "0",
            "1",
            "-1M",
            "+1M",
            "M",
            "12T",
            "99999999999999G",
            "1.5G",
        ] {
            let error = format!("size={size}").parse::<MemoryConfig>().unwrap_err();
            let expected = format!("option \"size\": \"{size}\" is not a size in bytes");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn unknown_memory_key_is_refused() {
        let error = "size=1G,shared=on".parse::<MemoryConfig>().unwrap_err();
        assert_eq!(error.to_string(), "unknown option \"shared\" (known: size)");
    }
}
