//! The kernel parameters that change ACS.

use crate::Ids;

/// The parameters that affect ACS. A later parameter overrides an earlier one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// `pci=disable_acs_redir=`: the ports whose request and completion redirect are disabled.
    pub disable_acs_redir: Option<String>,
    /// `pci=config_acs=`: ACS control values for ports.
    pub config_acs: Option<String>,
    /// `pci=noats`.
    pub no_ats: bool,
    /// `pcie_acs_override=`, supported only by patched kernels.
    pub acs_override: Option<AcsOverride>,
}

/// The functions that `pcie_acs_override=` declares isolated without changing the hardware. The parameter comes from a
/// common patch that is not in Linux.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AcsOverride {
    /// Root ports and downstream ports without an ACS capability.
    pub downstream: bool,
    /// Functions of multifunction devices without an ACS capability.
    pub multifunction: bool,
    /// Functions without an ACS capability, by vendor and device ID.
    pub ids: Vec<(u16, u16)>,
}

impl Parameters {
    /// Parses the words of a kernel command line.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parameters = Self::default();
        for word in words {
            match word.split_once('=') {
                Some(("pci", options)) => parameters.pci(options),
                Some((name, options)) if name.replace('-', "_") == "pcie_acs_override" => {
                    parameters.acs_override = Some(AcsOverride::parse(options));
                }
                _ => {}
            }
        }
        parameters
    }

    /// Parses the options of `pci=`, separated by commas (linux 7.2 drivers/pci/pci.c: `pci_setup()`).
    fn pci(&mut self, options: &str) {
        for option in options.split(',') {
            if let Some(value) = option.strip_prefix("disable_acs_redir=") {
                self.disable_acs_redir = Some(value.to_owned());
            } else if let Some(value) = option.strip_prefix("config_acs=") {
                self.config_acs = Some(value.to_owned());
            } else if option.starts_with("noats") {
                self.no_ats = true;
            }
        }
    }
}

impl AcsOverride {
    fn parse(options: &str) -> Self {
        let mut found = Self::default();
        for option in options.split(',') {
            if option == "downstream" {
                found.downstream = true;
            } else if option == "multifunction" {
                found.multifunction = true;
            } else if let Some((vendor, device)) = option
                .strip_prefix("id:")
                .and_then(|ids| ids.split_once(':'))
            {
                let number = |text| u16::from_str_radix(text, 16).ok();
                if let (Some(vendor), Some(device)) = (number(vendor), number(device)) {
                    found.ids.push((vendor, device));
                }
            }
        }
        found
    }

    pub(crate) fn names(&self, ids: Ids) -> bool {
        self.ids.contains(&(ids.vendor, ids.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_pci_are_separated_by_commas_and_the_last_wins() {
        let parameters = Parameters::parse([
            "quiet",
            "pci=nomsi,config_acs=1xx@pci:0:0,noats",
            "pci=config_acs=100x1@02:00.0;0@02:01.0,disable_acs_redir=00:01.0;00:02.0",
            "pci",
        ]);
        assert_eq!(
            parameters,
            Parameters {
                disable_acs_redir: Some("00:01.0;00:02.0".into()),
                config_acs: Some("100x1@02:00.0;0@02:01.0".into()),
                no_ats: true,
                acs_override: None,
            }
        );
    }

    #[test]
    fn the_override_patch() {
        let found = Parameters::parse([
            "pcie-acs-override=downstream,multifunction,id:1022:1483,id:x:y,foo",
        ]);
        assert_eq!(
            found.acs_override,
            Some(AcsOverride {
                downstream: true,
                multifunction: true,
                ids: vec![(0x1022, 0x1483)],
            })
        );
    }
}
