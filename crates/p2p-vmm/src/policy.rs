//! The operator's policy file.

use std::fs;
use std::path::Path;

use anyhow::Context;
use iommu_group::policy::Policy;

/// Reads the policy file of `--policy FILE`; an empty policy without the option.
pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Policy> {
    let Some(file) = file else {
        return Ok(Policy::default());
    };
    let name = file.display().to_string();
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read the policy file {name}"))?;
    Ok(Policy::parse(&name, &text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file_and_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p2p.toml");
        let error = read(Some(&file)).unwrap_err();
        let message = format!("{error:#}");
        assert!(
            message.contains("p2p.toml") && message.contains("No such file"),
            "{message}"
        );
        fs::write(
            &file,
            "[[device]]\nvendor = '8086'\np2p = 'never'\nwhat = 'x'\n",
        )
        .unwrap();
        let message = format!("{:#}", read(Some(&file)).unwrap_err());
        assert!(
            message.contains("p2p.toml:4: ") && message.contains("`what`"),
            "{message}"
        );
    }

    #[test]
    fn the_example_file_is_valid() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/p2p-policy.toml");
        let policy = read(Some(&example)).unwrap();
        assert_ne!(policy, Policy::default());
    }
}
