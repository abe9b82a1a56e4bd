//! How functions are called in front of people.

use iommu_group::Sbdf;

/// Names of functions as `lspci` has them: without the domain if there is only domain 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    with_domain: bool,
}

impl Names {
    /// For these functions, all there are.
    pub(crate) fn new(functions: impl IntoIterator<Item = Sbdf>) -> Self {
        Self {
            with_domain: functions.into_iter().any(|f| f.domain() != 0),
        }
    }

    /// Whether names have domains.
    pub(crate) fn have_domains(self) -> bool {
        self.with_domain
    }

    /// The name of one.
    pub(crate) fn of(self, function: Sbdf) -> String {
        let full = function.to_string();
        match full.split_once(':') {
            Some((_, short)) if !self.with_domain => short.to_owned(),
            _ => full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_shows_where_there_are_several() {
        let nic: Sbdf = "03:00.1".parse().unwrap();
        let vmd: Sbdf = "10000:e1:00.0".parse().unwrap();
        assert_eq!(Names::new([nic]).of(nic), "03:00.1");
        let both = Names::new([nic, vmd]);
        assert_eq!(
            (both.of(nic), both.of(vmd)),
            ("0000:03:00.1".into(), "10000:e1:00.0".into())
        );
    }
}
