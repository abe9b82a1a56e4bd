//! Fields of cloud-hypervisor that this VMM does not support: accepted with a value that requests nothing, otherwise
//! refused by name.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Value of an unsupported field: null, false, 0 or an empty list. Other values do not parse.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unsupported;

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nothing)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Unsupported {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Unsupported".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A field of cloud-hypervisor that this VMM does not support: only values that request nothing are accepted",
            "enum": [null, false, 0, []]
        })
    }
}

/// Accepts the values that request nothing.
struct Nothing;

fn only_if<E: de::Error>(nothing: bool) -> Result<Unsupported, E> {
    if nothing {
        Ok(Unsupported)
    } else {
        Err(E::custom(
            "this VMM does not have it: leave it out (null, false, 0 and [] are possible)",
        ))
    }
}

impl<'de> Visitor<'de> for Nothing {
    type Value = Unsupported;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("null, false, 0 or []: this VMM does not have it")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Unsupported, E> {
        Ok(Unsupported)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Unsupported, E> {
        only_if(!value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Unsupported, E> {
        only_if(value == 0)
    }

    fn visit_i64<E: de::Error>(self, _value: i64) -> Result<Unsupported, E> {
        only_if(false)
    }

    fn visit_f64<E: de::Error>(self, _value: f64) -> Result<Unsupported, E> {
        only_if(false)
    }

    fn visit_str<E: de::Error>(self, _value: &str) -> Result<Unsupported, E> {
        only_if(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unsupported, A::Error> {
        only_if(seq.next_element::<de::IgnoredAny>()?.is_none())
    }

    fn visit_map<A: MapAccess<'de>>(self, _map: A) -> Result<Unsupported, A::Error> {
        only_if(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_request_nothing_are_accepted() {
        for json in ["null", "false", "0", "[]"] {
            assert!(serde_json::from_str::<Unsupported>(json).is_ok(), "{json}");
        }
    }

    #[test]
    fn other_values_are_refused() {
        for json in ["true", "1", "-1", "0.5", "\"\"", "[0]", "{}"] {
            let error = serde_json::from_str::<Unsupported>(json).unwrap_err();
            assert!(error.to_string().contains("does not have it"), "{error}");
        }
    }
}
