use super::{settings::SETTINGS, sources::parse_file, *};
use crate::other_networks::table;
use clap::Command;
use ipip_abi::Encapsulation;
use std::path::Path;

fn from_args(args: &[&str]) -> Result<Config, ConfigError> {
    let command = with_flags(Command::new("ipip-agent"));
    let matches = command.get_matches_from([&["ipip-agent"], args].concat());
    load(&matches, "host-1")
}

#[test]
fn the_defaults_alone_are_a_valid_configuration() {
    let config = from_args(&[]).unwrap();
    assert_eq!(config.node_name, "host-1");
    assert_eq!(config.encapsulation, Encapsulation::Ipip);
    assert_eq!(config.udp_port, ipip_abi::DEFAULT_UDP_PORT);
    assert_eq!(config.mtu, None);
    assert_eq!(config.pin_root, Path::new(ipip_datapath::DEFAULT_PIN_ROOT));
    assert_eq!(
        config.state_dir,
        Path::new(ipip_datapath::DEFAULT_STATE_DIR)
    );
    assert_eq!(config.uplinks, Vec::<String>::new());
}

#[test]
fn a_flag_beats_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "udpPort: 6000\nuplinks: [eth0, eth1]\nmtu: 1400\n",
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let config = from_args(&["--config", path, "--udp-port", "7000"]).unwrap();
    assert_eq!(config.udp_port, 7000);
    assert_eq!(config.mtu, Some(1400));
    assert_eq!(config.uplinks, ["eth0", "eth1"]);
}

#[test]
fn every_setting_that_cannot_be_used_is_named_with_origin_and_remedy() {
    let texts = parse_file(Path::new("c"), "# a comment\nudpPort: 0\nmtu: small\n").unwrap();
    let error = validate(texts, "UPPER").unwrap_err().to_string();
    let expected = "\
nodeName: \"UPPER\" (the default) cannot be used; remedy: a name as Kubernetes gives it: lower-case letters, digits, - and ., at most 253
udpPort: \"0\" (line 2 of the configuration file) cannot be used; remedy: a port from 1 to 65535
mtu: \"small\" (line 3 of the configuration file) cannot be used; remedy: auto, or bytes from 576 to 65535";
    assert_eq!(error, expected);
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let error = parse_file(Path::new("c"), "udpPort: 1\nudpprot: 2\n").unwrap_err();
    let ConfigError::Form { line, text, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((line, text.as_str()), (2, "udpprot: 2"));
}

#[test]
fn flags_and_variables_are_named_after_their_keys() {
    let names: Vec<_> = SETTINGS
        .iter()
        .filter(|setting| ["mtu", "clusterPodCIDRs", "cniBinDir"].contains(&setting.key))
        .map(|setting| (setting.flag(), setting.variable()))
        .collect();
    let expected = [
        ("cluster-pod-cidrs", "IPIP_CLUSTER_POD_CIDRS"),
        ("mtu", "IPIP_MTU"),
        ("cni-bin-dir", "IPIP_CNI_BIN_DIR"),
    ];
    assert_eq!(
        names,
        expected.map(|(flag, variable)| (flag.into(), variable.into()))
    );
}

#[test]
fn the_printed_default_configuration_gives_the_defaults() {
    let texts = parse_file(Path::new("default"), &default_file()).unwrap();
    for setting in SETTINGS {
        let given = texts.get(setting.key).map(|(text, _)| text.as_str());
        assert_eq!(
            given.unwrap_or_default(),
            setting.default,
            "{}",
            setting.key
        );
    }
    assert_eq!(validate(texts, "host-1").unwrap(), from_args(&[]).unwrap());
}

#[test]
fn every_line_of_the_printed_default_configuration_can_be_a_setting() {
    let settings_only: String = default_file()
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .filter(|line| !line.starts_with(' ') || line.starts_with("  - "))
        .map(|line| format!("{line}\n"))
        .collect();
    let keys = settings_only.lines().filter(|line| line.contains(':'));
    assert_eq!(keys.count(), SETTINGS.len(), "{settings_only}");
    parse_file(Path::new("default"), &settings_only).unwrap();
}

#[test]
fn the_printed_default_configuration_documents_every_setting() {
    let file = default_file();
    for setting in SETTINGS {
        for part in [
            setting.key,
            setting.values,
            &setting.flag(),
            &setting.variable(),
        ] {
            assert!(file.contains(part), "{part} is not in\n{file}");
        }
    }
}

#[test]
fn a_pool_that_no_node_can_take_a_block_from_is_refused_with_field_value_and_remedy() {
    let refusal = |networks: &str, size: &str| {
        let flags = [
            "--cluster-pod-cidrs",
            networks,
            "--node-cidr-mask-size",
            size,
        ];
        from_args(&flags).unwrap_err().to_string()
    };
    for networks in [
        "10.42.0.0/16,10.42.128.0/17",
        "10.42.0.0/15,10.43.0.0/16",
        "10.42.0.1/16",
        "10.42.0.0",
        "169.254.0.0/16",
        "fd00::/64",
        "10.42.0.0/16,",
    ] {
        let expected = format!(
            "clusterPodCIDRs: {networks:?} (flag --cluster-pod-cidrs) cannot be used; remedy: disjoint IPv4 networks"
        );
        let refused = refusal(networks, "24");
        assert!(refused.starts_with(&expected), "{refused}");
    }
    for (networks, size) in [
        ("10.42.0.0/16,10.50.0.0/25", "24"),
        ("10.42.0.0/16", "29"),
        ("10.42.0.0/12", "15"),
        ("10.42.0.0/16", "/24"),
    ] {
        let networks = networks.replace("10.42.0.0/12", "10.32.0.0/12");
        let expected = format!(
            "nodeCIDRMaskSize: {size:?} (flag --node-cidr-mask-size) cannot be used; remedy: a number from 16 to 28"
        );
        let refused = refusal(&networks, size);
        assert_eq!(refused.lines().count(), 1, "{refused}");
        assert!(refused.starts_with(&expected), "{refused}");
    }
    let small = from_args(&["--cluster-pod-cidrs", "10.42.0.0/26"]).unwrap_err();
    assert!(
        small.to_string().contains("\"24\" (the default)"),
        "{small}"
    );
}

#[test]
fn the_smallest_pool_is_one_block() {
    let config = from_args(&["--cluster-pod-cidrs", "10.42.1.0/24"]).unwrap();
    assert_eq!(config.pod_pool().map(|pool| pool.count()), Some(1));
    assert_eq!(from_args(&[]).unwrap().pod_pool(), None);
}

#[test]
fn each_network_that_can_be_cleaned_up_after_is_a_value_of_the_setting_and_named_in_its_documentation()
 {
    let setting = SETTINGS.iter().find(|it| it.key == "cleanUpAfter").unwrap();
    for network in table::NETWORKS {
        assert!(setting.values.contains(network.name), "{}", network.name);
        let config = from_pairs("a1", &[("cleanUpAfter", network.name)]);
        assert_eq!(config.clean_up_after, [network.name]);
    }
}
