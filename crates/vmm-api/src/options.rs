//! Option lists of the command line: `key=value,key=value`.
//!
//! A value may be quoted with double quotes. Inside quotes a comma is an ordinary character and `""` is one quote.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Parse error of an option list. Every message names the key or text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A key that this list does not have.
    #[error("unknown option \"{key}\" (known: {known})")]
    UnknownKey {
        /// The key as it was given.
        key: String,
        /// All keys of the list, separated by commas.
        known: String,
    },
    /// A part without `=`.
    #[error("\"{text}\" is not of the form key=value (keys: {known})")]
    NotAPair {
        /// The part as it was given.
        text: String,
        /// All keys of the list, separated by commas.
        known: String,
    },
    /// A key that occurs twice.
    #[error("option \"{key}\" is given twice")]
    Repeated {
        /// The key.
        key: String,
    },
    /// `key=` without a value.
    #[error("option \"{key}\" has no value")]
    NoValue {
        /// The key.
        key: String,
    },
    /// A required key that is absent.
    #[error("option \"{key}\" is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value that does not parse.
    #[error("option \"{key}\": \"{value}\" is not {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// The value as it was given.
        value: String,
        /// What the value should have been.
        expected: String,
    },
    /// A quoted value whose closing quote is missing.
    #[error("\"{text}\" has an opening quote without a closing one")]
    OpenQuote {
        /// The part with the quote.
        text: String,
    },
}

/// A parsed option list. All keys are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    values: BTreeMap<String, String>,
}

impl Options {
    /// Splits `text` into pairs; only the keys in `known` are accepted, each once.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, OptionError> {
        let mut values = BTreeMap::new();
        for part in split_unquoted(text) {
            let (key, raw) = part.split_once('=').ok_or_else(|| OptionError::NotAPair {
                text: part.to_owned(),
                known: known.join(", "),
            })?;
            if !known.contains(&key) {
                return Err(OptionError::UnknownKey {
                    key: key.to_owned(),
                    known: known.join(", "),
                });
            }
            let value = unquote(raw).ok_or_else(|| OptionError::OpenQuote {
                text: part.to_owned(),
            })?;
            if value.is_empty() {
                return Err(OptionError::NoValue {
                    key: key.to_owned(),
                });
            }
            if values.insert(key.to_owned(), value).is_some() {
                return Err(OptionError::Repeated {
                    key: key.to_owned(),
                });
            }
        }
        Ok(Self { values })
    }

    /// The value of `key` as text, if it was given.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// The value of `key` as text; its absence is an error.
    pub fn required(&self, key: &str) -> Result<&str, OptionError> {
        self.text(key).ok_or_else(|| OptionError::Missing {
            key: key.to_owned(),
        })
    }

    /// The value of `key` as a `T`, if it was given; `expected` completes the sentence "… is not …".
    pub fn value<T: FromStr>(&self, key: &str, expected: &str) -> Result<Option<T>, OptionError> {
        self.text(key)
            .map(|value| value.parse().map_err(|_| bad_value(key, value, expected)))
            .transpose()
    }

    /// The value of the switch `key`: `on` or `off` (`true` and `false` are understood too).
    pub fn switch(&self, key: &str) -> Result<Option<bool>, OptionError> {
        self.text(key)
            .map(|value| match value.to_ascii_lowercase().as_str() {
                "on" | "true" => Ok(true),
                "off" | "false" => Ok(false),
                _ => Err(bad_value(key, value, "on or off")),
            })
            .transpose()
    }
}

/// Quotes `value` for an option list if necessary.
pub(crate) fn quote(value: &str) -> String {
    if value.contains([',', '"']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

fn bad_value(key: &str, value: &str, expected: &str) -> OptionError {
    OptionError::BadValue {
        key: key.to_owned(),
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}

/// Splits at the commas that are not inside quotes.
fn split_unquoted(text: &str) -> Vec<&str> {
    let mut quoted = false;
    text.split(move |c| {
        if c == '"' {
            quoted = !quoted;
        }
        c == ',' && !quoted
    })
    .collect()
}

/// Removes the quotes of a value. Returns `None` if they do not pair up.
fn unquote(raw: &str) -> Option<String> {
    let Some(rest) = raw.strip_prefix('"') else {
        return (!raw.contains('"')).then(|| raw.to_owned());
    };
    let inner = rest.strip_suffix('"')?;
    let plain = inner.replace("\"\"", "");
    (!plain.contains('"')).then(|| inner.replace("\"\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_split_at_commas_outside_quotes() {
        let options = Options::parse(r#"a=1,b="x,""y"",z",c=3"#, &["a", "b", "c"]).unwrap();
        assert_eq!(options.text("a"), Some("1"));
        assert_eq!(options.text("b"), Some(r#"x,"y",z"#));
        assert_eq!(options.text("c"), Some("3"));
    }

    #[test]
    fn unknown_key_names_itself_and_the_known_ones() {
        let error = Options::parse("a=1,q=2", &["a", "b"]).unwrap_err();
        assert_eq!(error.to_string(), "unknown option \"q\" (known: a, b)");
    }

    #[test]
    fn part_without_equals_sign_is_refused() {
        let error = Options::parse("a=1,b", &["a", "b"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"b\" is not of the form key=value (keys: a, b)"
        );
    }

    #[test]
    fn repeated_key_is_refused() {
        let error = Options::parse("a=1,a=1", &["a"]).unwrap_err();
        assert_eq!(error, OptionError::Repeated { key: "a".into() });
    }

    #[test]
    fn key_without_value_is_refused() {
        let error = Options::parse("a=", &["a"]).unwrap_err();
        assert_eq!(error, OptionError::NoValue { key: "a".into() });
    }

    #[test]
    fn quote_that_is_not_closed_is_refused() {
        for text in ["a=\"x", "a=x\"", "a=\"x\"y\"", "a=\""] {
            let error = Options::parse(text, &["a"]).unwrap_err();
            assert_eq!(error, OptionError::OpenQuote { text: text.into() });
        }
    }

    #[test]
    fn missing_key_is_named() {
        let options = Options::parse("a=1", &["a", "b"]).unwrap();
        let error = options.required("b").unwrap_err();
        assert_eq!(error.to_string(), "option \"b\" is missing");
    }

    #[test]
    fn value_that_does_not_parse_says_what_was_expected() {
        let options = Options::parse("a=x", &["a"]).unwrap();
        let error = options.value::<u8>("a", "a number").unwrap_err();
        assert_eq!(error.to_string(), "option \"a\": \"x\" is not a number");
    }

    #[test]
    fn switch_takes_on_and_off_only() {
        let on = Options::parse("a=ON", &["a"]).unwrap();
        assert_eq!(on.switch("a"), Ok(Some(true)));
        let off = Options::parse("a=off", &["a"]).unwrap();
        assert_eq!(off.switch("a"), Ok(Some(false)));
        let bad = Options::parse("a=yes", &["a"]).unwrap();
        assert_eq!(
            bad.switch("a").unwrap_err().to_string(),
            "option \"a\": \"yes\" is not on or off"
        );
    }
}
