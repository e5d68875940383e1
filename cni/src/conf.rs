//! The network configuration, and whether it makes sense.

use crate::{env::is_identifier, error::Error, result::Previous, version::Version};
use ipip_datapath::{AttachMode, DEFAULT_PIN_ROOT, Pins};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// RFC 791: every host takes datagrams of this size.
const LEAST_MTU: u32 = 576;
const MOST_MTU: u32 = 65_535;

/// A network configuration that makes sense.
#[derive(Debug)]
pub struct Conf {
    /// Where the datapath is pinned.
    pub pins: Pins,
    /// How programs are attached.
    pub attach: AttachMode,
    /// MTU of the pod, if it is not the node's.
    pub mtu: Option<u32>,
    /// The IPAM plugin.
    pub ipam: String,
    /// What the pod's resolver is told, if the IPAM plugin does not say.
    pub dns: Option<Value>,
    /// What ADD printed.
    pub previous: Option<Previous>,
}

/// As it is written. Fields that the runtime adds are not refused.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    name: String,
    #[serde(default = "default_pin_root")]
    pin_root: PathBuf,
    attach: Option<String>,
    mtu: Option<u32>,
    ipam: Ipam,
    dns: Option<Value>,
    prev_result: Option<Value>,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(rename = "type")]
    plugin: String,
}

impl Conf {
    /// Reads a configuration written in `version`.
    pub fn parse(input: &[u8], version: Version) -> Result<Self, Error> {
        let written: Written = serde_json::from_slice(input).map_err(Error::Decode)?;
        if !is_identifier(&written.name) {
            return Err(Error::Conf {
                field: "name",
                value: written.name,
                remedy: "use letters, digits, '.', '_' and '-', the first a letter or digit",
            });
        }
        if !written.pin_root.is_absolute() {
            return Err(Error::Conf {
                field: "pinRoot",
                value: written.pin_root.display().to_string(),
                remedy: "give an absolute path in a BPF file system, as in ipip-agent's configuration",
            });
        }
        let attach = match &written.attach {
            None => AttachMode::Auto,
            Some(word) => word.parse().map_err(|_| Error::Conf {
                field: "attach",
                value: word.clone(),
                remedy: "use auto, tcx or clsact",
            })?,
        };
        if let Some(mtu) = written.mtu
            && !(LEAST_MTU..=MOST_MTU).contains(&mtu)
        {
            return Err(Error::Conf {
                field: "mtu",
                value: mtu.to_string(),
                remedy: "use 576 to 65535, or leave it out to take what fits the node's uplinks",
            });
        }
        let plugin = written.ipam.plugin;
        if plugin.is_empty() || plugin.contains('/') || matches!(plugin.as_str(), "." | "..") {
            return Err(Error::Conf {
                field: "ipam.type",
                value: plugin,
                remedy: "give the file name of an IPAM plugin in CNI_PATH, such as host-local",
            });
        }
        let previous = written
            .prev_result
            .map(|previous| Previous::parse(previous, version))
            .transpose()?;
        Ok(Self {
            pins: Pins::new(written.pin_root),
            attach,
            mtu: written.mtu,
            ipam: plugin,
            dns: written.dns,
            previous,
        })
    }
}

fn default_pin_root() -> PathBuf {
    DEFAULT_PIN_ROOT.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(field: &str, value: Value) -> Result<Conf, Error> {
        let mut conf = json!({"name": "ipip", "type": "ipip", "ipam": {"type": "host-local"}});
        conf[field] = value;
        Conf::parse(conf.to_string().as_bytes(), Version::V1_0_0)
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let conf = with("type", json!("ipip")).unwrap();
        assert_eq!(conf.pins, Pins::new(DEFAULT_PIN_ROOT));
        assert_eq!((conf.attach, conf.mtu), (AttachMode::Auto, None));
        assert!(conf.previous.is_none());
    }

    #[test]
    fn a_refusal_names_field_value_and_remedy() {
        for (field, value, named) in [
            ("name", json!("a/b"), "a/b"),
            ("pinRoot", json!("bpf/ipip"), "bpf/ipip"),
            ("attach", json!("xdp"), "xdp"),
            ("mtu", json!(100), "100"),
            ("mtu", json!(70_000), "70000"),
            ("ipam", json!({"type": "../sh"}), "../sh"),
        ] {
            let error = with(field, value).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_missing_ipam_section_is_named() {
        let error = Conf::parse(br#"{"name": "ipip"}"#, Version::V1_0_0).unwrap_err();
        assert!(error.to_string().contains("ipam"), "{error}");
    }
}
