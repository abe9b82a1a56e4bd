//! Lines of JSON with a checksum, to detect changed and incomplete lines.
//!
//! ```text
//! {"at_ms":1764536400000,"record":"started","action":3,"sum":"a5bd2c1f03e7760d"}
//! ```
//! The checksum covers the line without the checksum.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The text before and after the checksum.
const BEFORE: &[u8] = b",\"sum\":\"";
const AFTER: &[u8] = b"\"}";

/// Number of digits of the checksum.
const DIGITS: usize = 16;

/// Serializes an object as one line, newline included.
pub(super) fn seal(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(value)?;
    let sum = format!("{:016x}", checksum(&line));
    line.pop();
    for part in [BEFORE, sum.as_bytes(), AFTER, b"\n"] {
        line.extend_from_slice(part);
    }
    Ok(line)
}

/// Parses the object of a line without its newline.
pub(super) fn unseal<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let damaged = || "the line was changed or is incomplete".to_owned();
    let split = || {
        let rest = line.strip_suffix(AFTER)?;
        let (rest, sum) = rest.split_at_checked(rest.len().checked_sub(DIGITS)?)?;
        let body = rest.strip_suffix(BEFORE)?;
        let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
        Some(([body, b"}"].concat(), sum))
    };
    let (text, sum) = split().ok_or_else(damaged)?;
    if checksum(&text) != sum {
        return Err(damaged());
    }
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

/// 64-bit FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn changed_lines_are_refused() {
        let value = BTreeMap::from([("port", "0000:02:00.0"), ("to", "001d")]);
        let line = seal(&value).unwrap();
        let line = line.strip_suffix(b"\n").unwrap();
        let back: BTreeMap<String, String> = unseal(line).unwrap();
        assert_eq!(back["to"], "001d");
        for at in 0..line.len() {
            let mut changed = line.to_vec();
            changed[at] ^= 1;
            // The case of a digit of the checksum does not matter.
            assert!(
                unseal::<BTreeMap<String, String>>(&changed).is_err(),
                "{at}"
            );
            assert!(
                unseal::<BTreeMap<String, String>>(&line[..at]).is_err(),
                "{at}"
            );
        }
    }
}
