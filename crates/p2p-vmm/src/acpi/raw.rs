//! AML as bytes, so that functions can build parts of a table.

use acpi_tables::{Aml, AmlSink};

/// Encoded AML.
pub(super) struct RawAml(Vec<u8>);

impl RawAml {
    /// Concatenates `parts`.
    pub(super) fn concat(parts: &[&dyn Aml]) -> Self {
        let mut bytes = Vec::new();
        for part in parts {
            part.to_aml_bytes(&mut bytes);
        }
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Aml for RawAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
