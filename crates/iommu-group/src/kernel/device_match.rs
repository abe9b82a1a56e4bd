//! Matching of a device against the text of a kernel parameter, as in the kernel.

use crate::topology::FunctionId;
use crate::{Sbdf, Topology};

/// Result of matching the start of a parameter's value against one function.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Match<'a> {
    /// The text names this function.
    Yes,
    /// The text names another function. Holds the rest of the value.
    No(&'a str),
    /// The kernel cannot parse the text and stops.
    Unreadable,
}

/// Matches a function against the device at the start of `text`: `[domain:]bus:device.function[/device.function]*` or
/// `pci:vendor:device[:subvendor:subdevice]` (linux 7.2 drivers/pci/pci.c: `pci_dev_str_match()`).
pub(super) fn device_match<'a>(topology: &Topology, id: FunctionId, text: &'a str) -> Match<'a> {
    match text.strip_prefix("pci:") {
        Some(ids) => by_ids(topology, id, ids),
        None => by_path(topology, id, text),
    }
}

fn by_ids<'a>(topology: &Topology, id: FunctionId, text: &'a str) -> Match<'a> {
    let Some(ids) = topology.function(id).map(|f| f.ids()) else {
        return Match::Unreadable;
    };
    let short = |value: u32| u16::try_from(value & 0xffff).unwrap_or(0);
    let four = scan::<4>(text, &[':', ':', ':']);
    let (wanted, rest) = match four {
        Some((numbers, rest)) => (numbers.map(short), rest),
        None => match scan::<2>(text, &[':']) {
            Some(([vendor, device], rest)) => ([short(vendor), short(device), 0, 0], rest),
            None => return Match::Unreadable,
        },
    };
    let have = [
        ids.vendor,
        ids.device,
        ids.subsystem_vendor,
        ids.subsystem_device,
    ];
    // Zero matches any value.
    if wanted
        .iter()
        .zip(have)
        .all(|(wanted, have)| *wanted == 0 || *wanted == have)
    {
        Match::Yes
    } else {
        Match::No(rest)
    }
}

fn by_path<'a>(topology: &Topology, id: FunctionId, text: &'a str) -> Match<'a> {
    let (mut path, rest) = match text.find(';') {
        Some(end) => text.split_at(end),
        None => (text, ""),
    };
    let mut id = id;
    while let Some((above, last)) = path.rsplit_once('/') {
        let Some(([device, function], "")) = scan::<2>(last, &['.']) else {
            return Match::Unreadable;
        };
        let Some(own) = topology.function(id).map(|f| f.sbdf()) else {
            return Match::No(rest);
        };
        if u32::from(own.devfn()) != devfn(device, function) {
            return Match::No(rest);
        }
        match topology.tree().parent(id) {
            Some(parent) => id = parent,
            None => return Match::No(rest),
        }
        path = above;
    }
    let full = match scan::<4>(path, &[':', ':', '.']) {
        Some((numbers, "")) => Some(numbers),
        _ => match scan::<3>(path, &[':', '.']) {
            Some(([bus, device, function], "")) => Some([0, bus, device, function]),
            _ => None,
        },
    };
    let Some([domain, bus, device, function]) = full else {
        return Match::Unreadable;
    };
    let same = |own: Sbdf| {
        own.domain() == domain
            && u32::from(own.bus()) == bus
            && u32::from(own.devfn()) == devfn(device, function)
    };
    if topology.function(id).is_some_and(|f| same(f.sbdf())) {
        Match::Yes
    } else {
        Match::No(rest)
    }
}

/// `PCI_DEVFN()`: truncates to five bits of device and three bits of function.
fn devfn(device: u32, function: u32) -> u32 {
    ((device & 0x1f) << 3) | (function & 0x7)
}

/// Parses `N` hexadecimal numbers with these separators. Returns them and the rest; `None` if there are fewer.
fn scan<'a, const N: usize>(text: &'a str, separators: &[char]) -> Option<([u32; N], &'a str)> {
    let mut numbers = [0; N];
    let mut rest = text;
    for (index, number) in numbers.iter_mut().enumerate() {
        if let Some(separator) = index
            .checked_sub(1)
            .and_then(|before| separators.get(before))
        {
            rest = rest.strip_prefix(*separator)?;
        }
        (*number, rest) = hex(rest)?;
    }
    Some((numbers, rest))
}

/// Parses a number like the kernel's `sscanf("%x")`: skips blanks and `0x`, and accepts any number of digits.
fn hex(text: &str) -> Option<(u32, &str)> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace());
    if !text.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let text = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_hexdigit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let value = digits
        .chars()
        .filter_map(|c| c.to_digit(16))
        .fold(0_u32, |value, digit| value.wrapping_shl(4) | digit);
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_sscanf_reads_them() {
        assert_eq!(hex("1f:2"), Some((0x1f, ":2")));
        assert_eq!(hex(" 0x1F"), Some((0x1f, "")));
        assert_eq!(hex("0x"), Some((0, "")));
        assert_eq!(hex("x"), None);
        assert_eq!(hex(""), None);
        assert_eq!(hex("-1"), None);
        assert_eq!(hex("123456789"), Some((0x2345_6789, "")));
        assert_eq!(scan::<3>("3:1f.7;", &[':', '.']), Some(([3, 0x1f, 7], ";")));
        assert_eq!(scan::<3>("3:1f", &[':', '.']), None);
    }
}
