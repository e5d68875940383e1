//! Entry points of the fuzz targets: what a container runtime and an IPAM plugin write.

use crate::{
    args::Args,
    conf::Conf,
    error::Error,
    ipam::{lease, older_input, with_data_dir},
    result::{Added, Previous},
    version::Version,
};
use serde_json::Value;
use std::{net::Ipv4Addr, path::Path};

/// The fields that a refusal of a decoded configuration names.
const FIELDS: [&str; 9] = [
    "name is ",
    "pinRoot is ",
    "attach is ",
    "mtu is ",
    "ipam.type is ",
    "runtimeConfig.mac is ",
    "args.cni.mac is ",
    "prevResult is invalid: ",
    "cniVersion ",
];

/// A network configuration, with the `prevResult` in it.
///
/// # Panics
/// A refusal does not say what is wrong, or the configuration for the IPAM plugin differs from the one that was read.
pub fn network_configuration(input: &[u8]) {
    let mut version = Version::NEWEST;
    let Err(error) = read(input, &mut version) else {
        return;
    };
    let report = error.report(version);
    let text = |field| report[field].as_str().unwrap_or_default();
    assert!(text("msg").len() > "ipip: ".len(), "{report}");
    let details = text("details");
    match report["code"].as_u64() {
        Some(1 | 7) => assert!(FIELDS.iter().any(|it| details.starts_with(it)), "{report}"),
        Some(6) => assert!(
            details.contains("cannot be decoded: ") || details.starts_with("prevResult is "),
            "{report}"
        ),
        _ => panic!("{report}"),
    }
}

/// The value of `CNI_ARGS`.
///
/// # Panics
/// A refusal does not name the variable.
pub fn arguments(text: &str) {
    if let Err(error) = Args::parse(text) {
        assert!(error.to_string().starts_with("CNI_ARGS has "), "{error}");
    }
}

/// The result that an IPAM plugin prints.
///
/// # Panics
/// The plugin's own result is not read back.
pub fn ipam_result(printed: &[u8]) {
    let conf = br#"{"name": "ipip", "ipam": {"type": "host-local"}}"#;
    let conf = Conf::parse(conf).expect("a valid configuration");
    match lease(&conf, printed) {
        Ok(lease) => expect_readable(lease.address, lease.dns),
        Err(error) => assert!(error.to_string().contains("IPAM plugin"), "{error}"),
    }
}

fn read(input: &[u8], version: &mut Version) -> Result<(), Error> {
    *version = Version::of(input)?;
    let conf = Conf::parse(input)?;
    let folder = Path::new("/run/ipip/ipam");
    let elsewhere = Conf::parse(&with_data_dir(input, folder)?)?;
    assert_eq!(elsewhere.ipam_data_dir.as_deref(), Some(folder));
    let older = older_input(input)?;
    assert_eq!(Version::of(&older)?, Version::V1_0_0);
    let older = Conf::parse(&older)?;
    for other in [elsewhere, older] {
        assert_eq!((&other.network, &other.ipam), (&conf.network, &conf.ipam));
    }
    if let Some(previous) = &conf.previous {
        let address = Previous::parse(previous, *version)?.address()?;
        expect_readable(address, conf.dns);
    }
    Ok(())
}

/// Fails if CHECK cannot read what ADD prints.
fn expect_readable(address: Ipv4Addr, dns: Option<Value>) {
    let added = Added::example(address, dns);
    for version in Version::ALL {
        let previous = Previous::parse(&added.to_json(version), version).expect("an own result");
        assert_eq!(previous.address().expect("an own result"), address);
    }
}
