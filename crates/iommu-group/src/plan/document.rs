//! A plan as a file.

use serde::{Deserialize, Serialize};

use super::Plan;

const FORMAT: &str = "regroup-plan";
const VERSION: u32 = 2;

/// Why a text is not a plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It is not JSON, or not of the shape that a plan has.
    #[error("not a plan: {0}")]
    Json(#[from] serde_json::Error),
    /// It is some other document.
    #[error("not a plan: its format is `{found}`, want `{FORMAT}`")]
    Format {
        /// What it says it is.
        found: String,
    },
    /// It is of a version that this program does not know.
    #[error("plan of version {found}: this program reads version {VERSION}")]
    Version {
        /// The version of the file.
        found: u32,
    },
}

#[derive(Serialize)]
struct Writing<'a> {
    format: &'a str,
    version: u32,
    plan: &'a Plan,
}

/// Read first, so that another format or version is told as such and not by what is strange in it.
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
    /// Writes the plan as a file.
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
