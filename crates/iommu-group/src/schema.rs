//! How documents of an API describe the types of this crate that are texts or formats of their own.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{AcsBits, Plan, ResetMask, Sbdf};

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
        })
    }
}

impl JsonSchema for Plan {
    fn schema_name() -> Cow<'static, str> {
        "Plan".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "A plan as it was made: `plan.plan` of what the call `plan` answers. It is for the daemon that \
                            made it, or one of the same version",
            "required": ["goals", "options", "steps", "unplug"],
        })
    }
}
