//! cloud-hypervisor's command line. Only the options that P2P depends on are parsed.

use std::ffi::{OsStr, OsString};

/// Program and arguments. Other arguments are passed through unchanged and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    words: Vec<OsString>,
}

/// A value of an option and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    word: usize,
    /// `--option=`, if the value is in the same argument.
    lead: String,
    pub(crate) text: String,
}

impl CommandLine {
    pub(crate) fn new(words: Vec<OsString>) -> Self {
        Self { words }
    }

    /// The program to start.
    pub(crate) fn program(&self) -> &OsStr {
        self.words.first().map_or(OsStr::new(""), |word| word)
    }

    pub(crate) fn arguments(&self) -> &[OsString] {
        self.words.get(1..).unwrap_or_default()
    }

    pub(crate) fn words(&self) -> &[OsString] {
        &self.words
    }

    /// All values of an option: the arguments up to the next one that begins with a hyphen, or the value after `=`.
    /// Values that are not UTF-8 are skipped: no option that is parsed here accepts them.
    pub(crate) fn values(&self, option: &str) -> Vec<Value> {
        let mut values = Vec::new();
        let mut ours = false;
        for (word, text) in self.words.iter().enumerate().skip(1) {
            let Some(text) = text.to_str() else { continue };
            if text == "--" {
                break;
            }
            let lead = format!("{option}=");
            if let Some(value) = text.strip_prefix(&lead) {
                ours = false;
                let text = value.to_owned();
                values.push(Value { word, lead, text });
            } else if text.len() > 1 && text.starts_with('-') {
                ours = text == option;
            } else if ours {
                let (lead, text) = (String::new(), text.to_owned());
                values.push(Value { word, lead, text });
            }
        }
        values
    }

    /// Whether the option is present.
    pub(crate) fn has(&self, option: &str) -> bool {
        let lead = format!("{option}=");
        self.arguments()
            .iter()
            .filter_map(|word| word.to_str())
            .any(|word| word == option || word.starts_with(&lead))
    }

    /// Replaces a value.
    pub(crate) fn replace(&mut self, value: &Value, text: &str) {
        if let Some(word) = self.words.get_mut(value.word) {
            *word = format!("{}{text}", value.lead).into();
        }
    }

    /// Appends an option.
    pub(crate) fn append(&mut self, option: &str, text: &str) {
        self.words.extend([option.into(), text.into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> CommandLine {
        CommandLine::new(words.iter().map(OsString::from).collect())
    }

    fn texts(line: &CommandLine, option: &str) -> Vec<String> {
        line.values(option).into_iter().map(|v| v.text).collect()
    }

    #[test]
    fn an_option_has_the_values_up_to_the_next_one() {
        let line = line(&[
            "ch",
            "--device",
            "path=/a",
            "path=/b",
            "-v",
            "--cpus",
            "boot=1",
            "--device=path=/c",
            "--device",
            "path=/d",
        ]);
        assert_eq!(
            texts(&line, "--device"),
            ["path=/a", "path=/b", "path=/c", "path=/d"]
        );
        assert_eq!(texts(&line, "--cpus"), ["boot=1"]);
        assert!(texts(&line, "--dev").is_empty() && line.has("--cpus") && !line.has("--cpu"));
    }

    #[test]
    fn a_value_of_another_option_is_none_of_ours() {
        let line = line(&["--device", "--disk", "path=/x", "--cmdline", "a=--device"]);
        assert!(texts(&line, "--device").is_empty());
    }

    #[test]
    fn a_value_is_replaced_where_it_stands() {
        let mut line = line(&["ch", "--cpus=boot=1", "--device", "a", "b"]);
        let cpus = line.values("--cpus").remove(0);
        line.replace(&cpus, "boot=2");
        let device = line.values("--device").remove(1);
        line.replace(&device, "c");
        line.append("--x", "y");
        assert_eq!(
            line.words(),
            ["ch", "--cpus=boot=2", "--device", "a", "c", "--x", "y"]
        );
    }
}
