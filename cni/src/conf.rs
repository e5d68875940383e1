//! The network configuration, and whether it makes sense.

use crate::{
    attachment::{Attachment, Network},
    env::is_identifier,
    error::Error,
};
use ipip_abi::Mac;
use ipip_datapath::{AttachMode, DEFAULT_PIN_ROOT, Pins};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// Where locks are unless `runDir` says otherwise; it need not survive a reboot.
const DEFAULT_RUN_DIR: &str = "/run/ipip";

/// RFC 791: every host takes datagrams of this size.
const LEAST_MTU: u32 = 576;
const MOST_MTU: u32 = 65_535;

/// A network configuration that makes sense.
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
    /// MTU of the pod, if it is not the node's.
    pub mtu: Option<u32>,
    /// MAC of the pod, if it is given in `runtimeConfig` or `args`.
    pub mac: Option<Mac>,
    /// Addresses of which the pod must get one, if any are given in `runtimeConfig`.
    pub wanted_ips: Vec<String>,
    /// What the plugin `bandwidth`, which comes after us, is to limit.
    pub bandwidth: Bandwidth,
    /// The IPAM plugin.
    pub ipam: String,
    /// The folder of host-local's leases, if it is not its default.
    pub ipam_data_dir: Option<PathBuf>,
    /// What the pod's resolver is told, if the IPAM plugin does not say.
    pub dns: Option<Value>,
    /// What ADD printed, as it came.
    pub previous: Option<Value>,
    /// For GC: the attachments that are to stay.
    pub valid: Option<Vec<Attachment>>,
}

/// As it is written. Fields that the runtime adds are not refused.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    name: String,
    #[serde(default = "default_pin_root")]
    pin_root: PathBuf,
    attach: Option<String>,
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
    mtu: Option<u32>,
    ipam: Ipam,
    dns: Option<Value>,
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: Wishes,
    #[serde(default)]
    args: WrittenArgs,
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

/// `runtimeConfig`, or `args.cni`. What other plugins of the chain take of it is theirs.
#[derive(Default, Deserialize)]
struct Wishes {
    mac: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    bandwidth: Bandwidth,
}

/// Rates in bits per second, as CNI's conventions have them; 0 is no limit. The bursts are not ours
/// to judge.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Of what comes to the pod.
    pub ingress_rate: u64,
    /// Of what the pod sends.
    pub egress_rate: u64,
}

#[derive(Default, Deserialize)]
struct WrittenArgs {
    #[serde(default)]
    cni: Wishes,
}

impl Bandwidth {
    /// Whether the pod's packets must go where `bandwidth` limits them.
    pub fn is_limited(self) -> bool {
        self != Self::default()
    }
}

impl Conf {
    /// How a new pod's programs are attached.
    pub fn attach_at_first(&self) -> Result<AttachMode, Error> {
        let rate = self.bandwidth.egress_rate;
        if rate == 0 {
            return Ok(self.attach.at_first());
        }
        // `bandwidth` adds an ingress qdisc to the host side, and the kernel takes none beside clsact.
        match self.attach.is_tcx().map_err(Error::NotReady)? {
            true => Ok(AttachMode::Tcx),
            false => Err(Error::Conf {
                field: "runtimeConfig.bandwidth.egressRate",
                value: rate.to_string(),
                remedy: "what a pod sends can only be limited where programs are attached by TCX: use Linux 6.6 or newer with attach auto or tcx, or leave out the pod's annotation kubernetes.io/egress-bandwidth",
            }),
        }
    }

    /// Reads a configuration.
    pub fn parse(input: &[u8]) -> Result<Self, Error> {
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
        // As the reference plugins weigh them: the runtime's word is the last.
        let mac = match (written.runtime_config.mac, written.args.cni.mac) {
            (Some(text), _) => Some(parse_mac("runtimeConfig.mac", text)?),
            (None, Some(text)) => Some(parse_mac("args.cni.mac", text)?),
            (None, None) => None,
        };
        Ok(Self {
            network: Network(written.name),
            pins: Pins::new(written.pin_root),
            attach,
            run_dir: written.run_dir,
            mtu: written.mtu,
            mac,
            bandwidth: written.runtime_config.bandwidth,
            wanted_ips: written.runtime_config.ips,
            ipam: plugin,
            ipam_data_dir: written.ipam.data_dir,
            dns: written.dns,
            previous: written.prev_result,
            valid: written.valid,
        })
    }
}

/// The address of one interface: six bytes in hexadecimal, not of a group, not zero.
pub fn parse_mac(field: &'static str, text: String) -> Result<Mac, Error> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| {
            // `from_str_radix` takes signs.
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
            remedy: "give a MAC like 02:00:00:00:00:01, not of a group and not zero",
        }),
    }
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
    fn the_runtimes_mac_beats_the_one_in_args() {
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
    fn only_a_pod_whose_sending_is_limited_waits_for_tcx() {
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
}
