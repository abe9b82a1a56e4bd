//! The operator's policy file.

use std::fs;
use std::path::Path;

use anyhow::Context;
use p2p_vfio::Policy;

/// Reads the rules of `--policy FILE`; none without it.
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
    fn a_file_that_cannot_be_used_is_named_with_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p2p.toml");
        let error = read(Some(&file)).unwrap_err();
        let said = format!("{error:#}");
        assert!(
            said.contains("p2p.toml") && said.contains("No such file"),
            "{said}"
        );
        fs::write(
            &file,
            "[[device]]\nvendor = '8086'\np2p = 'never'\nwhat = 'x'\n",
        )
        .unwrap();
        let said = format!("{:#}", read(Some(&file)).unwrap_err());
        assert!(
            said.contains("p2p.toml:4: ") && said.contains("`what`"),
            "{said}"
        );
    }

    #[test]
    fn the_example_is_a_policy() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/p2p-policy.toml");
        let policy = read(Some(&example)).unwrap();
        assert_ne!(policy, Policy::default());
    }
}
