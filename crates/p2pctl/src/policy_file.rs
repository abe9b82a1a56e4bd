//! The operator's policy file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use iommu_group::Sbdf;
use iommu_group::policy::Policy;

/// Reads a policy file; without a file there are no rules. Adds consent to the exposure of these functions.
pub(crate) fn read(file: Option<&Path>, expose: &[Sbdf]) -> Result<Policy> {
    let mut policy = match file {
        None => Policy::default(),
        Some(file) => {
            let name = file.display().to_string();
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
            Policy::parse(&name, &text)?
        }
    };
    policy.expose(expose.iter().copied());
    Ok(policy)
}
