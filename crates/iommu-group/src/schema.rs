//! JSON schemas of the types of this crate that have a text form or a format of their own.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{AcsBits, ResetKind, ResetMask, Sbdf};

impl JsonSchema for Sbdf {
    fn schema_name() -> Cow<'static, str> {
        "Sbdf".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "The address of a PCI function, 0000:03:00.0; domain 0 may be left out",
            "pattern": "^([0-9a-fA-F]{1,8}:)?[0-9a-fA-F]{1,2}:[01]?[0-9a-fA-F]\\.[0-7]$",
        })
    }
}

impl JsonSchema for AcsBits {
    fn schema_name() -> Cow<'static, str> {
        "AcsBits".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "The value of an ACS control register, 001d, or the names of its bits, SV+RR+CR+UF",
            "pattern": acs_pattern(),
        })
    }
}

impl JsonSchema for ResetMask {
    fn schema_name() -> Cow<'static, str> {
        "ResetMask".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Kinds of resets joined by `+`: device-specific, acpi, flr, af-flr, pm, slot, bus, cxl-bus, or \
                            func, link, any",
            "pattern": reset_pattern(),
        })
    }
}

/// Pattern of the text form of [`AcsBits`].
fn acs_pattern() -> String {
    let name = any_of(AcsBits::names());
    let none = any_case("none");
    format!("^((0x)?0*[0-9a-fA-F]{{1,4}}|{none}|{name}([+, ]{name})*)$")
}

/// Pattern of the text form of a [`ResetMask`].
fn reset_pattern() -> String {
    let kinds = ResetKind::ALL.map(|kind| kind.to_string());
    let sets = ["func", "link", "any"].into_iter();
    let kind = any_of(kinds.iter().map(String::as_str).chain(sets)).replace('-', "[-_]");
    format!("^\\s*{kind}\\s*([+,]\\s*{kind}\\s*)*$")
}

fn any_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(any_case).collect();
    format!("({})", names.join("|"))
}

/// Pattern that matches a name in upper, lower or mixed case.
fn any_case(name: &str) -> String {
    let letter = |letter: char| match letter.is_ascii_alphabetic() {
        true => format!(
            "[{}{}]",
            letter.to_ascii_lowercase(),
            letter.to_ascii_uppercase()
        ),
        false => letter.to_string(),
    };
    name.chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_every_name() {
        let acs = acs_pattern();
        for name in AcsBits::names() {
            assert!(
                name.parse::<AcsBits>().is_ok() && acs.contains(&any_case(name)),
                "{acs}"
            );
        }
        assert!(reset_pattern().contains("[aA][fF][-_][fF][lL][rR]"));
    }
}
