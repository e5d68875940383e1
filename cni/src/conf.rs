//! The network configuration: decoding and validation.

use crate::{
    attachment::{Attachment, Network},
    env::is_identifier,
    error::Error,
};
use ipip_abi::Mac;
use ipip_datapath::{AttachMode, DEFAULT_PIN_ROOT, Pins};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Folder of the lock file if `runDir` is not set; it need not survive a reboot.
const DEFAULT_RUN_DIR: &str = "/run/ipip";

/// RFC 791: every host accepts datagrams of this size.
const MIN_MTU: u32 = 576;
const MAX_MTU: u32 = 65_535;

/// A validated network configuration.
#[derive(Debug)]
pub struct Conf {
    /// The network's name.
    pub network: Network,
    /// Where the datapath is pinned.
    pub pins: Pins,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Folder of the lock.
    pub run_dir: PathBuf,
    /// MTU of the pod in bytes, if it is not the node's.
    pub mtu: Option<u32>,
    /// MAC of the pod, if it is given in `runtimeConfig` or `args`.
    pub mac: Option<Mac>,
    /// `runtimeConfig.ips`: if not empty, the pod must get one of these addresses.
    pub wanted_ips: Vec<String>,
    /// The limits that the plugin `bandwidth`, later in the chain, will apply.
    pub bandwidth: Bandwidth,
    /// File name of the IPAM plugin.
    pub ipam: String,
    /// The folder of host-local's leases, if not the default.
    pub ipam_data_dir: Option<PathBuf>,
    /// Settings of the pod's resolver, used if the IPAM plugin returns none.
    pub dns: Option<Value>,
    /// `prevResult`, the result of ADD, not yet decoded.
    pub previous: Option<Value>,
    /// For GC: the attachments to keep.
    pub valid: Option<Vec<Attachment>>,
}

/// The configuration as it is written. Unknown fields are allowed, because runtimes add some.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConf {
    name: String,
    #[serde(default = "default_pin_root")]
    pin_root: PathBuf,
    attach: Option<String>,
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
    mtu: Option<u32>,
    #[serde(deserialize_with = "object")]
    ipam: Ipam,
    dns: Option<Value>,
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: RequestedSettings,
    #[serde(default)]
    args: RawArgs,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    #[serde(rename = "type")]
    plugin: String,
    data_dir: Option<PathBuf>,
}

/// `runtimeConfig` or `args.cni`. Fields for other plugins of the chain are ignored.
#[derive(Default, Deserialize)]
struct RequestedSettings {
    mac: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    bandwidth: Bandwidth,
}

/// Rates in bits per second, as in the CNI conventions; 0 means no limit. Bursts are left to the
/// plugin `bandwidth`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Rate of the traffic to the pod.
    pub ingress_rate: u64,
    /// Rate of the traffic from the pod.
    pub egress_rate: u64,
}

#[derive(Default, Deserialize)]
struct RawArgs {
    #[serde(default)]
    cni: RequestedSettings,
}

impl Bandwidth {
    /// Whether the pod's packets must pass through the qdiscs of the plugin `bandwidth`.
    pub fn is_limited(self) -> bool {
        self != Self::default()
    }
}

impl Conf {
    /// The mode in which the programs of a new pod are attached.
    pub fn attach_at_first(&self) -> Result<AttachMode, Error> {
        let rate = self.bandwidth.egress_rate;
        if rate == 0 {
            return Ok(self.attach.at_first());
        }
        // `bandwidth` adds an ingress qdisc to the host side; the kernel allows none beside clsact.
        if self.attach.is_tcx().map_err(Error::NotReady)? {
            return Ok(AttachMode::Tcx);
        }
        Err(Error::Conf {
            field: "runtimeConfig.bandwidth.egressRate",
            value: rate.to_string(),
            remedy: "traffic from a pod can be limited only if programs are attached by TCX: use Linux 6.6 or newer with attach auto or tcx, or remove the pod's annotation kubernetes.io/egress-bandwidth",
        })
    }

    /// Decodes and validates a configuration.
    ///
    /// # Errors
    /// Names the first invalid field, its value and the remedy.
    pub fn parse(input: &[u8]) -> Result<Self, Error> {
        let raw: RawConf = serde_json::from_slice(input).map_err(Error::Decode)?;
        let requested = raw.runtime_config;
        Ok(Self {
            network: Network(network_name(raw.name)?),
            pins: Pins::new(pin_root(raw.pin_root)?),
            attach: attach_mode(raw.attach)?,
            run_dir: raw.run_dir,
            mtu: raw.mtu.map(mtu).transpose()?,
            mac: requested_mac(requested.mac, raw.args.cni.mac)?,
            bandwidth: requested.bandwidth,
            wanted_ips: requested.ips,
            ipam: plugin_name(raw.ipam.plugin)?,
            ipam_data_dir: raw.ipam.data_dir,
            dns: raw.dns,
            previous: raw.prev_result,
            valid: raw.valid,
        })
    }
}

fn network_name(name: String) -> Result<String, Error> {
    if is_identifier(&name) {
        return Ok(name);
    }
    Err(Error::Conf {
        field: "name",
        value: name,
        remedy: "use letters, digits, '.', '_' and '-', the first a letter or digit",
    })
}

fn pin_root(path: PathBuf) -> Result<PathBuf, Error> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::Conf {
        field: "pinRoot",
        value: path.display().to_string(),
        remedy: "give an absolute path in a BPF file system, as in ipip-agent's configuration",
    })
}

fn attach_mode(word: Option<String>) -> Result<AttachMode, Error> {
    let Some(word) = word else {
        return Ok(AttachMode::Auto);
    };
    word.parse().map_err(|_| Error::Conf {
        field: "attach",
        value: word,
        remedy: "use auto, tcx or clsact",
    })
}

fn mtu(mtu: u32) -> Result<u32, Error> {
    if (MIN_MTU..=MAX_MTU).contains(&mtu) {
        return Ok(mtu);
    }
    Err(Error::Conf {
        field: "mtu",
        value: mtu.to_string(),
        remedy: "use 576 to 65535, or leave it out to take what fits the node's uplinks",
    })
}

fn plugin_name(name: String) -> Result<String, Error> {
    if !name.is_empty() && !name.contains('/') && !matches!(name.as_str(), "." | "..") {
        return Ok(name);
    }
    Err(Error::Conf {
        field: "ipam.type",
        value: name,
        remedy: "give the file name of an IPAM plugin in CNI_PATH, such as host-local",
    })
}

/// `runtimeConfig` takes precedence over `args`, as in the reference plugins.
fn requested_mac(runtime: Option<String>, args: Option<String>) -> Result<Option<Mac>, Error> {
    if let Some(text) = runtime {
        return parse_mac("runtimeConfig.mac", text).map(Some);
    }
    args.map(|text| parse_mac("args.cni.mac", text)).transpose()
}

/// Parses the MAC of one interface: six bytes in hexadecimal, neither a group address nor zero.
pub fn parse_mac(field: &'static str, text: String) -> Result<Mac, Error> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| {
            // `from_str_radix` alone would accept a sign.
            let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            let part = Some(part).filter(|part| digits && part.len() <= 2);
            u8::from_str_radix(part?, 16).ok()
        })
        .collect();
    match bytes.as_deref().map(<[u8; 6]>::try_from) {
        Some(Ok(mac)) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Mac(mac)),
        _ => Err(Error::Conf {
            field,
            value: text,
            remedy: "give a MAC such as 02:00:00:00:00:01, neither a group address nor zero",
        }),
    }
}

/// Decodes an object. A derived decoder alone also takes an array with the values of its fields.
fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<T, D::Error> {
    let object = Map::deserialize(from)?;
    serde_json::from_value(Value::Object(object)).map_err(D::Error::custom)
}

fn default_run_dir() -> PathBuf {
    DEFAULT_RUN_DIR.into()
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
        Conf::parse(conf.to_string().as_bytes())
    }

    #[test]
    fn a_field_that_is_left_out_has_its_default() {
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
            (
                "runtimeConfig",
                json!({"mac": "01:00:00:00:00:01"}),
                "01:00",
            ),
            ("args", json!({"cni": {"mac": "2:3:4"}}), "2:3:4"),
            ("args", json!({"cni": {"mac": "02:00:00:00:00:+1"}}), "+1"),
        ] {
            let error = with(field, value).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_mac_in_runtime_config_takes_precedence_over_one_in_args() {
        let conf = with("args", json!({"cni": {"mac": "02:00:00:00:00:01"}})).unwrap();
        assert_eq!(conf.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        let both = json!({
            "name": "ipip",
            "ipam": {"type": "host-local"},
            "args": {"cni": {"mac": "02:00:00:00:00:01"}},
            "runtimeConfig": {"mac": "02:00:00:00:00:02", "portMappings": []},
        });
        let conf = Conf::parse(both.to_string().as_bytes()).unwrap();
        assert_eq!(conf.mac, Some(Mac([2, 0, 0, 0, 0, 2])));
    }

    #[test]
    fn only_a_pod_with_limited_egress_is_attached_by_tcx_at_once() {
        let limited = |ingress, egress| {
            let rates = json!({"ingressRate": ingress, "egressRate": egress, "egressBurst": 1});
            with("runtimeConfig", json!({"bandwidth": rates})).unwrap()
        };
        let conf = limited(0, 0);
        assert!(!conf.bandwidth.is_limited());
        assert_eq!(conf.attach_at_first().unwrap(), AttachMode::Clsact);
        let conf = limited(8, 0);
        assert!(conf.bandwidth.is_limited());
        assert_eq!(conf.attach_at_first().unwrap(), AttachMode::Clsact);
        let mut conf = limited(0, 8);
        assert!(conf.bandwidth.is_limited());
        conf.attach = AttachMode::Clsact;
        let error = conf.attach_at_first().unwrap_err().to_string();
        assert!(
            error.contains("egressRate is \"8\"") && error.contains("6.6"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_ipam_section_is_named() {
        let error = Conf::parse(br#"{"name": "ipip"}"#).unwrap_err();
        assert!(error.to_string().contains("ipam"), "{error}");
    }

    #[test]
    fn an_ipam_section_that_is_no_object_is_refused() {
        let error = with("ipam", json!(["host-local", null])).unwrap_err();
        assert!(error.to_string().contains("expected a map"), "{error}");
    }
}
