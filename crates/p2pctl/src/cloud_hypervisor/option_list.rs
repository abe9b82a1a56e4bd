//! Option lists in cloud-hypervisor's syntax: `key=value,key=[1,2],key="a,b"`.

use std::fmt;

use thiserror::Error;

/// An option list that keeps the spelling and order of its entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct OptionList {
    parts: Vec<String>,
}

/// Parse error of an option list.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{text}\" has unbalanced quotes or brackets")]
pub(crate) struct Unpaired {
    text: String,
}

impl OptionList {
    /// Splits at commas outside of quotes and brackets.
    pub(crate) fn parse(text: &str) -> Result<Self, Unpaired> {
        let mut parts = vec![String::new()];
        let (mut quoted, mut depth) = (false, 0_u32);
        let unpaired = || Unpaired {
            text: text.to_owned(),
        };
        for c in text.chars() {
            match c {
                '"' => quoted = !quoted,
                '[' if !quoted => depth += 1,
                ']' if !quoted => depth = depth.checked_sub(1).ok_or_else(unpaired)?,
                ',' if !quoted && depth == 0 => {
                    parts.push(String::new());
                    continue;
                }
                _ => {}
            }
            if let Some(part) = parts.last_mut() {
                part.push(c);
            }
        }
        if quoted || depth > 0 {
            return Err(unpaired());
        }
        parts.retain(|part| !part.is_empty());
        Ok(Self { parts })
    }

    /// The value of a key, without quotes. The last entry wins.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let value = |part: &String| {
            Some(
                part.split_once('=')
                    .filter(|(k, _)| *k == key)?
                    .1
                    .trim()
                    .to_owned(),
            )
        };
        let raw = self.parts.iter().rev().find_map(value)?;
        let inner = raw
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        Some(inner.map_or(raw.clone(), |inner| inner.replace("\"\"", "\"")))
    }

    /// Removes a key from the list and returns its value.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let value = self.get(key);
        self.parts.retain(|part| key_of(part) != key);
        value
    }

    /// Sets a key, in its existing position if there is one.
    pub(crate) fn set(&mut self, key: &str, value: impl fmt::Display) {
        let pair = format!("{key}={value}");
        match self.parts.iter().rposition(|part| key_of(part) == key) {
            Some(at) => {
                if let Some(part) = self.parts.get_mut(at) {
                    *part = pair;
                }
            }
            None => self.parts.push(pair),
        }
    }
}

fn key_of(part: &str) -> &str {
    part.split_once('=').map_or(part, |(key, _)| key)
}

impl fmt::Display for OptionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts.join(","))
    }
}

/// Parses `on` or `off`, in all spellings that cloud-hypervisor accepts.
pub(crate) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" => Some(true),
        "off" | "false" | "" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_quotes_keep_their_commas() {
        let text = r#"path="/a,b",x_exclude_mmap_bars=[0,2],id=x"#;
        let list = OptionList::parse(text).unwrap();
        assert_eq!(list.get("path").as_deref(), Some("/a,b"));
        assert_eq!(list.get("x_exclude_mmap_bars").as_deref(), Some("[0,2]"));
        assert_eq!(list.to_string(), text);
    }

    #[test]
    fn a_key_is_taken_or_set_and_the_others_stay_as_they_are() {
        let mut list = OptionList::parse("path=/a,p2p=on, id = x ,p2p=off").unwrap();
        assert_eq!(list.take("p2p").as_deref(), Some("off"));
        assert_eq!(list.take("p2p"), None);
        list.set("path", "/b");
        list.set("new", 3);
        assert_eq!(list.to_string(), "path=/b, id = x ,new=3");
    }

    #[test]
    fn what_does_not_pair_up_is_no_list() {
        for text in ["a=\"x", "a=[1", "a=1]", "a=[\"]"] {
            assert!(OptionList::parse(text).is_err(), "{text}");
        }
    }
}
