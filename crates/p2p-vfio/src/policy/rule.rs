//! One rule of a policy file.

use serde::Deserialize;
use thiserror::Error;

/// What a device may do in a P2P domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reach the others and be reached.
    Peer,
    /// Be reached: it must not send requests to other devices.
    TargetOnly,
    /// Reach the others: its BARs are not plain device memory.
    InitiatorOnly,
    /// Nothing.
    Never,
}

/// What rules ask about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface in bits 23:0.
    pub class: u32,
    /// Whether it is a part of the root complex, without a link of its own.
    pub integrated: bool,
}

/// Why a policy file is none.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// Not TOML, or not of this form.
    #[error("not a policy: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A number that is none.
    #[error(
        "rule {rule} of the policy: {field} = {text:?} is not a number of four hexadecimal digits"
    )]
    Number {
        /// Which rule, from 1.
        rule: usize,
        /// Which key.
        field: &'static str,
        /// What it says.
        text: String,
    },
    /// A rule without a reason.
    #[error("rule {rule} of the policy has an empty `why`: it is what a refusal says")]
    NoReason {
        /// Which rule, from 1.
        rule: usize,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    vendor: String,
    device: Option<String>,
    p2p: Role,
    why: String,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    vendor: u16,
    device: Option<u16>,
    pub(super) role: Role,
    pub(super) why: String,
}

impl Rule {
    pub(super) fn fits(&self, identity: &Identity) -> bool {
        let device = self.device.is_none_or(|device| device == identity.device);
        self.vendor == identity.vendor && device
    }
}

/// The rules of a policy file, in its order.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, PolicyError> {
    let file: File = toml::from_str(text)?;
    let rule = |(rule, entry): (usize, Entry)| {
        if entry.why.trim().is_empty() {
            return Err(PolicyError::NoReason { rule });
        }
        let device = entry.device.map(|text| number(rule, "device", text));
        Ok(Rule {
            vendor: number(rule, "vendor", entry.vendor)?,
            device: device.transpose()?,
            role: entry.p2p,
            why: entry.why,
        })
    };
    (1..).zip(file.device).map(rule).collect()
}

/// Four hexadecimal digits, with or without `0x`, as lspci and sysfs write them.
fn number(rule: usize, field: &'static str, text: String) -> Result<u16, PolicyError> {
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    let parsed = u16::from_str_radix(digits, 16).ok();
    let parsed = parsed.filter(|_| digits.len() == 4 && !digits.starts_with('+'));
    parsed.ok_or(PolicyError::Number { rule, field, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_has_no_rules() {
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rule = |rest: &str| format!("[[device]]\nvendor = '8086'\n{rest}");
        for (text, words) in [
            (
                rule("p2p = 'sometimes'\nwhy = 'x'"),
                ["sometimes", "line 3"],
            ),
            (rule("p2p = 'never'"), ["why", "line 1"]),
            (rule("p2p = 'never'\nwhy = ' '"), ["rule 1", "why"]),
            (
                rule("device = '12'\np2p = 'never'\nwhy = 'x'"),
                ["device", "\"12\""],
            ),
            (
                rule("device = '+123'\np2p = 'never'\nwhy = 'x'"),
                ["rule 1", "+123"],
            ),
            (
                rule("model = '1234'\np2p = 'never'\nwhy = 'x'"),
                ["model", "line 3"],
            ),
            ("devices = 1".to_owned(), ["devices", "line 1"]),
        ] {
            let said = error(&text);
            for word in words {
                assert!(said.contains(word), "{word} is not in: {said}");
            }
        }
    }
}
