//! Fields that cloud-hypervisor has and this VMM lacks: accepted where they ask for nothing, refused by name else.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The value of such a field: null, false, 0 or an empty list; anything else does not parse.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lacking;

impl<'de> Deserialize<'de> for Lacking {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nothing)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Lacking {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Lacking".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "What cloud-hypervisor has and this VMM lacks: may be there if it asks for nothing",
            "enum": [null, false, 0, []]
        })
    }
}

/// Accepts what asks for nothing.
struct Nothing;

fn only_if<E: de::Error>(nothing: bool) -> Result<Lacking, E> {
    if nothing {
        Ok(Lacking)
    } else {
        Err(E::custom(
            "this VMM does not have it: leave it out (null, false, 0 and [] are possible)",
        ))
    }
}

impl<'de> Visitor<'de> for Nothing {
    type Value = Lacking;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("null, false, 0 or []: this VMM does not have it")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Lacking, E> {
        Ok(Lacking)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Lacking, E> {
        only_if(!value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Lacking, E> {
        only_if(value == 0)
    }

    fn visit_i64<E: de::Error>(self, _value: i64) -> Result<Lacking, E> {
        only_if(false)
    }

    fn visit_f64<E: de::Error>(self, _value: f64) -> Result<Lacking, E> {
        only_if(false)
    }

    fn visit_str<E: de::Error>(self, _value: &str) -> Result<Lacking, E> {
        only_if(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Lacking, A::Error> {
        only_if(seq.next_element::<de::IgnoredAny>()?.is_none())
    }

    fn visit_map<A: MapAccess<'de>>(self, _map: A) -> Result<Lacking, A::Error> {
        only_if(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        for json in ["null", "false", "0", "[]"] {
            assert!(serde_json::from_str::<Lacking>(json).is_ok(), "{json}");
        }
    }

    #[test]
    fn what_asks_for_something_is_refused() {
        for json in ["true", "1", "-1", "0.5", "\"\"", "[0]", "{}"] {
            let error = serde_json::from_str::<Lacking>(json).unwrap_err();
            assert!(error.to_string().contains("does not have it"), "{error}");
        }
    }
}
