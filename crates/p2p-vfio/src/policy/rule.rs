//! The text of a policy file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::ops::Range;
use std::sync::Arc;

use iommu_group::Sbdf;
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::{Consent, Place, Policy};

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
pub(crate) struct Identity {
    /// Vendor id.
    pub(crate) vendor: u16,
    /// Device id.
    pub(crate) device: u16,
    /// Class, subclass and programming interface in bits 23:0.
    pub(crate) class: u32,
    /// Whether it is a part of the root complex, without a link of its own.
    pub(crate) integrated: bool,
}

/// Why a policy file is none.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// Not TOML, or not of this form.
    #[error("{place}: {message}\n       {line}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
        /// The line.
        line: String,
    },
    /// A number that is none.
    #[error("{place}: {key} = {text:?} is not a number of four hexadecimal digits")]
    Number {
        /// Where.
        place: Place,
        /// Which key.
        key: &'static str,
        /// What it says.
        text: String,
    },
    /// An address that is none.
    #[error("{place}: function = {text:?} is not the address of a function, such as 0000:04:00.0")]
    Function {
        /// Where.
        place: Place,
        /// What it says.
        text: String,
    },
    /// Two entries for one function.
    #[error("{place}: {function} has an entry already")]
    Repeated {
        /// Where the second one is.
        place: Place,
        /// The function.
        function: Sbdf,
    },
    /// An entry without a reason.
    #[error("{place}: why = \"\" says nothing; write down the reason")]
    NoReason {
        /// Where.
        place: Place,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<Spanned<Entry>>,
    #[serde(default)]
    expose: Vec<Spanned<ExposeEntry>>,
    #[serde(rename = "unsafe-interrupts")]
    unsafe_interrupts: Option<Spanned<InterruptsEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    vendor: Spanned<String>,
    device: Option<Spanned<String>>,
    p2p: Role,
    why: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExposeEntry {
    function: Spanned<String>,
    why: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InterruptsEntry {
    why: Spanned<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    vendor: u16,
    device: Option<u16>,
    pub(super) role: Role,
    pub(super) why: String,
    pub(super) place: Place,
}

impl Rule {
    pub(super) fn fits(&self, identity: &Identity) -> bool {
        let device = self.device.is_none_or(|device| device == identity.device);
        self.vendor == identity.vendor && device
    }
}

/// What a policy file says, its rules in its order.
pub(super) fn parse(name: &str, text: &str) -> Result<Policy, PolicyError> {
    let source = Source {
        name: name.into(),
        text,
    };
    let file: File = toml::from_str(text).map_err(|error| source.syntax(&error))?;
    let rules = file.device.into_iter().map(|entry| source.rule(entry));
    let rules = rules.collect::<Result<_, _>>()?;
    let mut exposed = BTreeMap::new();
    for entry in file.expose {
        let (function, consent) = source.exposed(entry)?;
        match exposed.entry(function) {
            Slot::Vacant(slot) => slot.insert(consent),
            Slot::Occupied(_) => {
                let place = consent.1;
                return Err(PolicyError::Repeated { place, function });
            }
        };
    }
    let consent = |(function, (why, place))| (function, Consent::File { why, place });
    Ok(Policy {
        rules,
        exposed: exposed.into_iter().map(consent).collect(),
        unsafe_interrupts: file
            .unsafe_interrupts
            .map(|entry| source.unsafe_interrupts(entry))
            .transpose()?,
    })
}

/// A file that is being read.
struct Source<'a> {
    name: Arc<str>,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        Place::of(&self.name, self.text, span.start)
    }

    fn syntax(&self, error: &toml::de::Error) -> PolicyError {
        let place = self.place(error.span().unwrap_or_default());
        let line = self.text.lines().nth(place.line.saturating_sub(1));
        PolicyError::Syntax {
            line: line.unwrap_or_default().trim().to_owned(),
            message: error.message().to_owned(),
            place,
        }
    }

    fn rule(&self, entry: Spanned<Entry>) -> Result<Rule, PolicyError> {
        let place = self.place(entry.span());
        let Entry {
            vendor,
            device,
            p2p,
            why,
        } = entry.into_inner();
        let why = self.reason(why)?;
        let device = device.map(|text| self.number("device", text));
        Ok(Rule {
            vendor: self.number("vendor", vendor)?,
            device: device.transpose()?,
            role: p2p,
            why,
            place,
        })
    }

    /// An accepted exposure: the function, and why and where.
    fn exposed(&self, entry: Spanned<ExposeEntry>) -> Result<(Sbdf, (String, Place)), PolicyError> {
        let place = self.place(entry.span());
        let ExposeEntry { function, why } = entry.into_inner();
        let why = self.reason(why)?;
        let at = self.place(function.span());
        let text = function.into_inner();
        match text.parse() {
            Ok(function) => Ok((function, (why, place))),
            Err(_) => Err(PolicyError::Function { place: at, text }),
        }
    }

    fn unsafe_interrupts(&self, entry: Spanned<InterruptsEntry>) -> Result<Consent, PolicyError> {
        let place = self.place(entry.span());
        let why = self.reason(entry.into_inner().why)?;
        Ok(Consent::File { why, place })
    }

    /// A reason, which must say something.
    fn reason(&self, why: Spanned<String>) -> Result<String, PolicyError> {
        if why.as_ref().trim().is_empty() {
            let place = self.place(why.span());
            return Err(PolicyError::NoReason { place });
        }
        Ok(why.into_inner())
    }

    /// Four hexadecimal digits, with or without `0x`, as lspci and sysfs write them.
    fn number(&self, key: &'static str, text: Spanned<String>) -> Result<u16, PolicyError> {
        let place = self.place(text.span());
        let text = text.into_inner();
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        let parsed = u16::from_str_radix(digits, 16).ok();
        let parsed = parsed.filter(|_| digits.len() == 4 && !digits.starts_with('+'));
        parsed.ok_or(PolicyError::Number { place, key, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse("p.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_has_no_rules() {
        assert_eq!(parse("p.toml", "").unwrap(), Policy::default());
    }

    #[test]
    fn line_and_key_of_what_is_wrong_are_named() {
        let rule = |rest: &str| format!("[[device]]\nvendor = '8086'\n{rest}");
        for (text, words) in [
            (
                rule("p2p = 'sometimes'\nwhy = 'x'"),
                ["p.toml:3: ", "p2p = 'sometimes'"],
            ),
            (rule("p2p = 'never'"), ["p.toml:1: ", "why"]),
            (rule("p2p = 'never'\nwhy = ' '"), ["p.toml:4: ", "why"]),
            (
                rule("device = '12'\np2p = 'never'\nwhy = 'x'"),
                ["p.toml:3: ", "device = \"12\""],
            ),
            (
                rule("p2p = 'never'\nwhy = 'x'\ndevice = '+123'"),
                ["p.toml:5: ", "+123"],
            ),
            (
                rule("model = '1234'\np2p = 'never'\nwhy = 'x'"),
                ["p.toml:3: ", "`model`"],
            ),
            (rule("p2p = 'never"), ["p.toml:3: ", "p2p = 'never"]),
            ("devices = 1".to_owned(), ["p.toml:1: ", "`devices`"]),
            (
                "[[expose]]\nwhy = 'x'\nfunction = '04.0'".to_owned(),
                ["p.toml:3: ", "function = \"04.0\""],
            ),
            (
                "[[expose]]\nfunction = '04:00.0'".to_owned(),
                ["p.toml:1: ", "why"],
            ),
            (
                "[[expose]]\nfunction = '04:00.0'\nwhy = ''".to_owned(),
                ["p.toml:3: ", "why"],
            ),
            (
                "[unsafe-interrupts]\nwhy = ''".to_owned(),
                ["p.toml:2: ", "why"],
            ),
            (
                "[[expose]]\nfunction = '04:00.0'\nwhy = 'x'\nto = 'y'".to_owned(),
                ["p.toml:4: ", "`to`"],
            ),
            (
                "[[expose]]\nfunction = '04:00.0'\nwhy = 'x'\n[[expose]]\nfunction = '0000:04:00.0'\nwhy = 'y'"
                    .to_owned(),
                ["p.toml:4: ", "0000:04:00.0 has an entry already"],
            ),
        ] {
            let said = error(&text);
            for word in words {
                assert!(said.contains(word), "{word} is not in: {said}");
            }
        }
    }
}
