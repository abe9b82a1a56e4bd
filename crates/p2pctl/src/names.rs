//! Names of functions in text for people.

use iommu_group::Sbdf;

/// The format of function names. As with `lspci`, names have a segment only if the machine has other segments than 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    with_segment: bool,
}

impl Names {
    /// The format for this set of all functions.
    pub(crate) fn new(functions: impl IntoIterator<Item = Sbdf>) -> Self {
        Self {
            with_segment: functions.into_iter().any(|f| f.domain() != 0),
        }
    }

    /// Whether names include the segment.
    pub(crate) fn have_segments(self) -> bool {
        self.with_segment
    }

    /// The name of a function.
    pub(crate) fn of(self, function: Sbdf) -> String {
        let full = function.to_string();
        match full.split_once(':') {
            Some((_, short)) if !self.with_segment => short.to_owned(),
            _ => full,
        }
    }

    /// The names of functions. Of many functions, only the first ones are listed.
    pub(crate) fn list<'f>(self, functions: impl IntoIterator<Item = &'f Sbdf>) -> String {
        let names: Vec<String> = functions.into_iter().map(|f| self.of(*f)).collect();
        few(&names, 16)
    }

    /// Replaces the full names of functions in a text by their short names.
    pub(crate) fn shorten(self, text: &str) -> String {
        let mut short = String::with_capacity(text.len());
        let mut word = String::new();
        let flush = |word: &mut String, short: &mut String| {
            // A trailing full stop or colon does not belong to the name.
            let bare = word.trim_end_matches(['.', ':']);
            match bare.parse::<Sbdf>() {
                Ok(function) => {
                    short.push_str(&self.of(function));
                    short.push_str(word.get(bare.len()..).unwrap_or_default());
                }
                Err(_) => short.push_str(word),
            }
            word.clear();
        };
        for c in text.chars() {
            if c.is_ascii_hexdigit() || c == ':' || c == '.' {
                word.push(c);
            } else {
                flush(&mut word, &mut short);
                short.push(c);
            }
        }
        flush(&mut word, &mut short);
        short
    }
}

/// Joins words with spaces. Of more than `most` words, only these and the number of the others are listed.
pub(crate) fn few(words: &[String], most: usize) -> String {
    match words.get(..most) {
        Some(few) if words.len() > most => {
            format!("{} and {} more", few.join(" "), words.len() - most)
        }
        _ => words.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_shows_where_there_are_several() {
        let nic: Sbdf = "03:00.1".parse().unwrap();
        let vmd: Sbdf = "10000:e1:00.0".parse().unwrap();
        assert_eq!(Names::new([nic]).of(nic), "03:00.1");
        let both = Names::new([nic, vmd]);
        assert_eq!(
            (both.of(nic), both.of(vmd)),
            ("0000:03:00.1".into(), "10000:e1:00.0".into())
        );
    }

    #[test]
    fn names_in_sentences_are_shortened() {
        let nic: Sbdf = "03:00.1".parse().unwrap();
        let names = Names::new([nic]);
        for (long, short) in [
            ("in the group of 0000:03:00.1.", "in the group of 03:00.1."),
            (
                "0000:03:00.1, because 10de:2330 is 1.5 a:b",
                "03:00.1, because 10de:2330 is 1.5 a:b",
            ),
            ("(0000:03:00.1: dead beef)", "(03:00.1: dead beef)"),
        ] {
            assert_eq!(names.shorten(long), short);
        }
    }
}
