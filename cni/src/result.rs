//! The result of ADD, and `prevResult`, in which CHECK and DEL receive it.

use crate::{error::Error, pod_link::GATEWAY, version::Version};
use ipip_abi::Mac;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{net::Ipv4Addr, path::PathBuf};

/// A container that ADD has connected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Added {
    /// Name of the host side of its veth.
    pub host_ifname: String,
    /// MAC of the host side.
    pub host_mac: Mac,
    /// Name of its own interface.
    pub ifname: String,
    /// MAC of its own interface.
    pub mac: Mac,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its address.
    pub address: Ipv4Addr,
    /// Settings of its resolver.
    pub dns: Option<Value>,
}

/// The part of an earlier [`Added`] that CHECK and DEL need.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Previous {
    addresses: Vec<Ipv4Addr>,
}

#[derive(Deserialize)]
struct RawResult {
    #[serde(default)]
    ips: Vec<RawIp>,
}

#[derive(Deserialize)]
struct RawIp {
    address: ipnetwork::IpNetwork,
}

impl Added {
    /// The result object of `version`.
    pub fn to_json(&self, version: Version) -> Value {
        let mut host = json!({"name": self.host_ifname, "mac": self.host_mac.to_string()});
        let mut pod = json!({
            "name": self.ifname,
            "mac": self.mac.to_string(),
            "sandbox": self.netns,
        });
        if version >= Version::V1_1_0 {
            host["mtu"] = self.mtu.into();
            pod["mtu"] = self.mtu.into();
        }
        let mut ip = json!({
            "address": format!("{}/32", self.address),
            "gateway": GATEWAY,
            "interface": 1,
        });
        if version == Version::V0_4_0 {
            ip["version"] = "4".into();
        }
        let mut result = json!({
            "cniVersion": version.name(),
            "interfaces": [host, pod],
            "ips": [ip],
            "routes": [{"dst": "0.0.0.0/0", "gw": GATEWAY}],
        });
        if let Some(dns) = &self.dns {
            result["dns"] = dns.clone();
        }
        result
    }
}

impl Previous {
    /// Reads a `prevResult`, which must have the version of the configuration.
    pub fn parse(raw: &Value, version: Version) -> Result<Self, Error> {
        if let Some(other) = raw.get("cniVersion").and_then(Value::as_str)
            && other != version.name()
        {
            return Err(Error::Previous(format!(
                "its cniVersion is {other}, but that of the configuration is {}",
                version.name()
            )));
        }
        let result = RawResult::deserialize(raw).map_err(|e| Error::Previous(e.to_string()))?;
        let addresses = result.ips.iter().filter_map(|ip| match ip.address {
            ipnetwork::IpNetwork::V4(network) => Some(network.ip()),
            ipnetwork::IpNetwork::V6(_) => None,
        });
        Ok(Self {
            addresses: addresses.collect(),
        })
    }

    /// The address that ADD assigned.
    pub fn address(&self) -> Result<Ipv4Addr, Error> {
        match self.addresses[..] {
            [address] => Ok(address),
            _ => Err(Error::Previous(format!(
                "it has {} IPv4 addresses, but ADD prints exactly one",
                self.addresses.len()
            ))),
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Added {
    /// A result for tests and fuzz targets.
    pub fn example(address: Ipv4Addr, dns: Option<Value>) -> Self {
        Self {
            host_ifname: "pod0123456789a".into(),
            host_mac: Mac([2, 0, 0, 0, 0, 1]),
            ifname: "eth0".into(),
            mac: Mac([2, 0, 0, 0, 0, 2]),
            mtu: 1480,
            netns: "/run/netns/x".into(),
            address,
            dns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added() -> Added {
        Added::example(Ipv4Addr::new(10, 42, 1, 5), None)
    }

    #[test]
    fn each_version_has_its_own_fields() {
        let [old, middle, new] = Version::ALL.map(|version| added().to_json(version));
        assert_eq!(old["ips"][0]["version"], "4");
        assert!(middle["ips"][0].get("version").is_none());
        assert!(middle["interfaces"][1].get("mtu").is_none());
        assert_eq!(new["interfaces"][1]["mtu"], 1480);
        for result in [old, middle, new] {
            assert_eq!(result["ips"][0]["address"], "10.42.1.5/32");
            assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/x");
            assert!(result["interfaces"][0].get("sandbox").is_none());
        }
    }

    #[test]
    fn a_printed_result_is_read_back() {
        for version in Version::ALL {
            let previous = Previous::parse(&added().to_json(version), version).unwrap();
            assert_eq!(previous.address().unwrap(), added().address);
        }
    }

    #[test]
    fn a_result_of_another_version_or_without_one_address_is_refused() {
        let printed = added().to_json(Version::V0_4_0);
        assert!(Previous::parse(&printed, Version::V1_0_0).is_err());
        let empty = Previous::parse(&json!({"cniVersion": "1.0.0"}), Version::V1_0_0).unwrap();
        assert!(empty.address().is_err());
    }
}
