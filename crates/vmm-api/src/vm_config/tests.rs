use super::*;

fn parse(json: &str) -> Result<VmConfig, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn with_devices(ids: &[Option<&str>]) -> VmConfig {
    let mut config = parse(r#"{"payload":{"kernel":"/k"}}"#).unwrap();
    config.devices = ids
        .iter()
        .map(|id| DeviceConfig {
            path: Some("/sys/x".into()),
            fd: None,
            id: id.map(str::to_owned),
            p2p: false,
            p2p_domain: None,
            expose: BTreeSet::new(),
        })
        .collect();
    config
}

fn ids(config: &VmConfig) -> Vec<&str> {
    let ids = config.devices.iter().filter_map(|d| d.id.as_deref());
    ids.collect()
}

#[test]
fn json_round_trips() {
    let json = r#"{"cpus":{"boot_vcpus":2,"max_vcpus":2},"memory":{"size":1073741824},
        "payload":{"kernel":"/k","initramfs":"/i","cmdline":"console=ttyS0"},
        "devices":[{"path":"/sys/a","id":"nvme0","p2p":true}],
        "serial":{"mode":"File","file":"/tmp/log"},"console":{"mode":"Off"}}"#;
    let config = parse(json).unwrap();
    assert_eq!(config.serial, SerialConfig::File("/tmp/log".into()));
    let again = serde_json::to_string(&config).unwrap();
    assert_eq!(parse(&again), Ok(config));
}

#[test]
fn absent_fields_have_defaults() {
    let config = parse(r#"{"payload":{"kernel":"/k"}}"#).unwrap();
    assert_eq!(config.cpus.boot_vcpus(), 1);
    assert_eq!(config.serial, SerialConfig::Null);
    assert_eq!(config.devices, []);
}

#[test]
fn unsupported_fields_that_request_nothing_are_accepted() {
    let json = r#"{"payload":{"kernel":"/k","firmware":null},"disks":null,"net":[],"iommu":false,
        "devices":[{"path":"/sys/a","iommu":false,"pci_segment":0,"pci_device_id":null,"fd":null,
        "x_nv_gpudirect_clique":null,"x_exclude_mmap_bars":[]}]}"#;
    assert_eq!(parse(json).unwrap().devices.len(), 1);
}

#[test]
fn unsupported_fields_are_refused() {
    for part in [
        r#""disks":[{"path":"/d"}]"#,
        r#""iommu":true"#,
        r#""memory":{"size":4096,"shared":true}"#,
        r#""console":{"mode":"Tty"}"#,
        r#""devices":[{"path":"/sys/a","iommu":true}]"#,
        r#""devices":[{"path":"/sys/a","pci_segment":1}]"#,
        r#""serial":{"mode":"Pty"}"#,
        r#""unheard_of":null"#,
    ] {
        let json = format!(r#"{{"payload":{{"kernel":"/k"}},{part}}}"#);
        assert!(parse(&json).is_err(), "{part}");
    }
}

#[test]
fn devices_without_a_name_get_unused_names() {
    let mut config = with_devices(&[None, Some("_vfio0"), None, Some("nvme")]);
    config.name_devices().unwrap();
    assert_eq!(ids(&config), ["_vfio1", "_vfio0", "_vfio2", "nvme"]);
}

#[test]
fn names_are_unique_and_valid() {
    let mut config = with_devices(&[Some("a"), Some("a")]);
    let error = config.name_devices().unwrap_err();
    assert_eq!(error.to_string(), "Identifier a is not unique");

    let long = "x".repeat(65);
    for id in ["", "a b", "a/b", "ä", "\n", long.as_str()] {
        let mut config = with_devices(&[Some(id)]);
        let error = config.name_devices().unwrap_err();
        assert_eq!(error, ConfigError::BadId(id.to_owned()));
    }
}
