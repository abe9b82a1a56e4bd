//! The machine's apt sources, parsed so that other suites can be downloaded from the same mirror.

use std::fmt::Write as _;

/// One source, in either of apt's formats (sources.list(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Further fields, named as in deb822 format. A value may span lines (an inline key).
    options: Vec<(String, String)>,
}

impl Source {
    /// Binary package sources in a `.sources` file.
    pub(super) fn parse_deb822(text: &str) -> Vec<Self> {
        let mut sources = Vec::new();
        let mut stanza: Vec<(String, String)> = Vec::new();
        for line in text.lines().chain([""]) {
            if line.starts_with('#') {
            } else if line.trim().is_empty() {
                sources.extend(Self::from_fields(std::mem::take(&mut stanza)));
            } else if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = stanza.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((key, value)) = line.split_once(':') {
                stanza.push((key.trim().to_owned(), value.trim().to_owned()));
            }
        }
        sources
    }

    fn from_fields(fields: Vec<(String, String)>) -> Option<Self> {
        let mut source = Self {
            uris: Vec::new(),
            suites: Vec::new(),
            components: Vec::new(),
            options: Vec::new(),
        };
        let mut binary = false;
        for (key, value) in fields {
            let words = || value.split_ascii_whitespace().map(str::to_owned).collect();
            match key.to_ascii_lowercase().as_str() {
                "types" => binary = value.split_ascii_whitespace().any(|word| word == "deb"),
                "uris" => source.uris = words(),
                "suites" => source.suites = words(),
                "components" => source.components = words(),
                "enabled" if value.eq_ignore_ascii_case("no") => return None,
                "enabled" => {}
                _ => source.options.push((key, value)),
            }
        }
        (binary && !source.uris.is_empty() && !source.suites.is_empty()).then_some(source)
    }

    /// Binary package sources in a one-line-style `.list` file.
    pub(super) fn parse_list(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse_line).collect()
    }

    fn parse_line(line: &str) -> Option<Self> {
        let line = line.split('#').next().unwrap_or_default().trim();
        let rest = line.strip_prefix("deb")?;
        let mut rest = rest.strip_prefix([' ', '\t'])?.trim_start();
        let mut options = Vec::new();
        if let Some(bracket) = rest.strip_prefix('[') {
            let (inside, after) = bracket.split_once(']')?;
            for option in inside.split_ascii_whitespace() {
                let (key, value) = option.split_once('=')?;
                options.push((long_name(key), value.replace(',', " ")));
            }
            rest = after;
        }
        let mut words = rest.split_ascii_whitespace().map(str::to_owned);
        Some(Self {
            uris: vec![words.next()?],
            suites: vec![words.next()?],
            components: words.collect(),
            options,
        })
    }

    /// Whether this source provides a release itself, not only its updates.
    pub(super) fn has_suite(&self, suite: &str) -> bool {
        self.suites.iter().any(|known| known == suite)
    }

    /// Whether one of the suites belongs to a release: `bookworm`, `bookworm-security`, …
    pub(super) fn belongs_to(&self, codename: &str) -> bool {
        self.suites
            .iter()
            .any(|suite| suite.split(['-', '/']).next() == Some(codename))
    }

    /// The same mirror and keys with another suite.
    pub(super) fn with_suite(&self, suite: &str) -> Self {
        Self {
            suites: vec![suite.to_owned()],
            components: vec!["main".to_owned()],
            ..self.clone()
        }
    }

    /// The source as a deb822 stanza.
    pub(super) fn to_deb822(&self) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\n",
            self.uris.join(" "),
            self.suites.join(" ")
        );
        if !self.components.is_empty() {
            let _ = writeln!(text, "Components: {}", self.components.join(" "));
        }
        for (key, value) in &self.options {
            let _ = writeln!(text, "{key}: {value}");
        }
        text.push('\n');
        text
    }
}

/// sources.list(5): the deb822 field that a one-line option stands for.
fn long_name(option: &str) -> String {
    match option {
        "arch" => "Architectures",
        "lang" => "Languages",
        "target" => "Targets",
        "pdiffs" => "PDiffs",
        // The others differ only in case, which apt ignores.
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://other.example/debian
Suites: bookworm
";

    #[test]
    fn a_deb822_source_keeps_its_mirror_and_key_under_another_suite() {
        let sources = Source::parse_deb822(DEB822);
        assert_eq!(
            sources.len(),
            1,
            "neither source packages nor disabled ones"
        );
        let source = &sources[0];
        assert!(source.has_suite("bookworm") && source.belongs_to("bookworm"));
        assert_eq!(
            source.with_suite("trixie-backports").to_deb822(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie-backports\n\
             Components: main\nSigned-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\n"
        );
    }

    #[test]
    fn a_one_line_source_becomes_the_same_kind_of_thing() {
        let text = "# deb http://no.example/ bookworm main\n\
            deb-src http://mirror.example/debian bookworm main\n\
            deb [arch=amd64,i386 signed-by=/k.gpg] http://mirror.example/debian bookworm-security main # c\n";
        let sources = Source::parse_list(text);
        assert_eq!(sources.len(), 1);
        assert!(!sources[0].has_suite("bookworm"));
        assert!(sources[0].belongs_to("bookworm"));
        assert_eq!(
            sources[0].to_deb822(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-security\n\
             Components: main\nArchitectures: amd64 i386\nsigned-by: /k.gpg\n\n"
        );
    }

    #[test]
    fn a_suite_of_another_release_does_not_belong() {
        let sources = Source::parse_list("deb http://x.example/ nodistro main");
        assert!(!sources[0].belongs_to("bookworm"));
    }
}
