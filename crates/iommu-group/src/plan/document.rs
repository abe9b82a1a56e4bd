//! File format of a plan.

use serde::{Deserialize, Serialize};

use super::Plan;

const FORMAT: &str = "regroup-plan";
const VERSION: u32 = 2;

/// Plan file parse error.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The text is not JSON, or not a plan.
    #[error("not a plan: {0}")]
    Json(#[from] serde_json::Error),
    /// The document has another format.
    #[error("not a plan: its format is `{found}`, expected `{FORMAT}`")]
    Format {
        /// The format that the document names.
        found: String,
    },
    /// This program does not support the version.
    #[error("plan of version {found}: this program reads version {VERSION}")]
    Version {
        /// The version of the document.
        found: u32,
    },
}

#[derive(Serialize)]
struct Writing<'a> {
    format: &'a str,
    version: u32,
    plan: &'a Plan,
}

/// The format and version of a document. They are read first, so that an unsupported document gets a clear error.
#[derive(Deserialize)]
struct Heading {
    format: String,
    version: u32,
}

#[derive(Deserialize)]
struct Reading {
    plan: Plan,
}

impl Plan {
    /// Writes the plan as the text of a file.
    #[must_use]
    pub fn to_json(&self) -> String {
        let writing = Writing {
            format: FORMAT,
            version: VERSION,
            plan: self,
        };
        let mut text = serde_json::to_string_pretty(&writing).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads a plan from the text of a file.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        let heading: Heading = serde_json::from_str(text)?;
        if heading.format != FORMAT {
            return Err(PlanError::Format {
                found: heading.format,
            });
        }
        if heading.version != VERSION {
            return Err(PlanError::Version {
                found: heading.version,
            });
        }
        let reading: Reading = serde_json::from_str(text)?;
        Ok(reading.plan)
    }
}
