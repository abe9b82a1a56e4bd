//! Addresses that the kernel assigned to a function.

use crate::config::Space;

/// One line of the file `resource`: CPU addresses and flags (linux 7.2 include/linux/ioport.h: `IORESOURCE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) line: u8,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) flags: u64,
}

const IO: u64 = 0x100;
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
const MEMORY_64: u64 = 0x0010_0000;
const DISABLED: u64 = 0x1000_0000;
const UNSET: u64 = 0x2000_0000;

impl Resource {
    pub(super) fn space(&self) -> Option<Space> {
        match (self.flags & IO != 0, self.flags & MEMORY_64 != 0) {
            (true, _) => Some(Space::Io),
            (false, true) => Some(Space::Memory64),
            (false, false) => (self.flags & MEMORY != 0).then_some(Space::Memory32),
        }
    }

    pub(super) fn is_prefetchable(&self) -> bool {
        self.flags & PREFETCHABLE != 0
    }

    pub(super) fn is_assigned(&self) -> bool {
        self.flags & (UNSET | DISABLED) == 0
    }
}

/// The nonzero lines of the file `resource`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ResourceLines(pub(crate) Vec<Resource>);

impl ResourceLines {
    /// Parses lines of the form `start end flags`. Invalid lines are skipped.
    pub(crate) fn parse(text: &str) -> Self {
        let parsed = text.lines().zip(0_u8..).filter_map(|(text, line)| {
            let mut words = text
                .split_ascii_whitespace()
                .map(|word| u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok());
            let resource = Resource {
                line,
                start: words.next()??,
                end: words.next()??,
                flags: words.next()??,
            };
            (resource.flags != 0).then_some(resource)
        });
        Self(parsed.collect())
    }

    /// Whether there are no lines: the function has no addresses, or sysfs does not have them.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn line(&self, line: u8) -> Option<&Resource> {
        self.0.iter().find(|resource| resource.line == line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_flags_and_without_sense_are_left_out() {
        let text = "0x00000000febf0000 0x00000000febf0fff 0x0000000000040200\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    nonsense\n\
                    0x1 0x2\n\
                    0x10 0x1f 0x0000000000040101 more\n";
        let lines = ResourceLines::parse(text);
        assert_eq!(
            lines.0,
            [
                Resource {
                    line: 0,
                    start: 0xfebf_0000,
                    end: 0xfebf_0fff,
                    flags: 0x4_0200
                },
                Resource {
                    line: 4,
                    start: 0x10,
                    end: 0x1f,
                    flags: 0x4_0101
                },
            ]
        );
        assert_eq!(ResourceLines::parse(""), ResourceLines::default());
    }
}
