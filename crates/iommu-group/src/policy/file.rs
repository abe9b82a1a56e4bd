//! The format of a policy file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::rule::Rule;
use super::{Consent, Location, Policy, Role};
use crate::Sbdf;

/// Policy file error.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// The text is not TOML, or not a policy.
    #[error("{location}: {message}\n       {line}")]
    Syntax {
        /// Position of the error.
        location: Location,
        /// Message of the parser.
        message: String,
        /// Text of the line.
        line: String,
    },
    /// A value is not a number.
    #[error("{location}: {key} = {text:?} is not a number of four hexadecimal digits")]
    Number {
        /// Position of the value.
        location: Location,
        /// The key.
        key: &'static str,
        /// The value.
        text: String,
    },
    /// A value is not the address of a function.
    #[error(
        "{location}: function = {text:?} is not the address of a function, such as 0000:04:00.0"
    )]
    Function {
        /// Position of the value.
        location: Location,
        /// The value.
        text: String,
    },
    /// Two entries name the same function.
    #[error("{location}: {function} has an entry already")]
    Repeated {
        /// Position of the second entry.
        location: Location,
        /// The function.
        function: Sbdf,
    },
    /// An entry has no reason.
    #[error("{location}: why = \"\" is empty: give a reason")]
    NoReason {
        /// Position of the entry.
        location: Location,
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

/// Parses the text of a policy file; `name` is the file's name in messages.
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
                let location = consent.1;
                return Err(PolicyError::Repeated { location, function });
            }
        };
    }
    let consent = |(function, (why, location))| (function, Consent::File { why, location });
    Ok(Policy {
        rules,
        exposed: exposed.into_iter().map(consent).collect(),
        unsafe_interrupts: file
            .unsafe_interrupts
            .map(|entry| source.unsafe_interrupts(entry))
            .transpose()?,
    })
}

/// A policy file during parsing.
struct Source<'a> {
    name: Arc<str>,
    text: &'a str,
}

impl Source<'_> {
    fn location(&self, span: Range<usize>) -> Location {
        Location::of(&self.name, self.text, span.start)
    }

    fn syntax(&self, error: &toml::de::Error) -> PolicyError {
        let location = self.location(error.span().unwrap_or_default());
        let line = self.text.lines().nth(location.line.saturating_sub(1));
        PolicyError::Syntax {
            line: line.unwrap_or_default().trim().to_owned(),
            message: error.message().to_owned(),
            location,
        }
    }

    fn rule(&self, entry: Spanned<Entry>) -> Result<Rule, PolicyError> {
        let location = self.location(entry.span());
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
            location,
        })
    }

    /// Parses an accepted exposure: the function, the reason and the location.
    fn exposed(
        &self,
        entry: Spanned<ExposeEntry>,
    ) -> Result<(Sbdf, (String, Location)), PolicyError> {
        let location = self.location(entry.span());
        let ExposeEntry { function, why } = entry.into_inner();
        let why = self.reason(why)?;
        let at = self.location(function.span());
        let text = function.into_inner();
        match text.parse() {
            Ok(function) => Ok((function, (why, location))),
            Err(_) => Err(PolicyError::Function { location: at, text }),
        }
    }

    fn unsafe_interrupts(&self, entry: Spanned<InterruptsEntry>) -> Result<Consent, PolicyError> {
        let location = self.location(entry.span());
        let why = self.reason(entry.into_inner().why)?;
        Ok(Consent::File { why, location })
    }

    /// Checks that a reason is not empty.
    fn reason(&self, why: Spanned<String>) -> Result<String, PolicyError> {
        if why.as_ref().trim().is_empty() {
            let location = self.location(why.span());
            return Err(PolicyError::NoReason { location });
        }
        Ok(why.into_inner())
    }

    /// Parses four hexadecimal digits, with or without `0x`, as lspci and sysfs write them.
    fn number(&self, key: &'static str, text: Spanned<String>) -> Result<u16, PolicyError> {
        let location = self.location(text.span());
        let text = text.into_inner();
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        let parsed = u16::from_str_radix(digits, 16).ok();
        let parsed = parsed.filter(|_| digits.len() == 4 && !digits.starts_with('+'));
        parsed.ok_or(PolicyError::Number {
            location,
            key,
            text,
        })
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
