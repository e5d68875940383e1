//! The agent's own settings: file, then environment, then flags, and all of them judged together.

use crate::{encapsulation, nodes::inventory};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use ipip_abi::Encapsulation;
use ipip_datapath::AttachMode;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tracing_subscriber::EnvFilter;

/// What the agent runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of this node in the inventory.
    pub node_name: String,
    /// Where the nodes come from.
    pub node_source: NodeSourceKind,
    /// Host name or address of the API server; `None` means that it is looked for.
    pub kubernetes_service_host: Option<String>,
    /// Its port, where the host is given.
    pub kubernetes_service_port: u16,
    /// Who to be to the API server; `None` means the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where a kubelet may keep the address of the API server, the first that is there counts.
    pub kubelet_kubeconfigs: Vec<PathBuf>,
    /// The inventory file.
    pub inventory: PathBuf,
    /// Folder on bpffs below which programs and maps are pinned.
    pub pin_root: PathBuf,
    /// Folder for what must survive a restart and is no pin.
    pub state_dir: PathBuf,
    /// Encapsulation of paths for which no node overrides it.
    pub encapsulation: Encapsulation,
    /// UDP port of the `udp` encapsulation.
    pub udp_port: u16,
    /// Interfaces that carry tunnel packets; none means that the routes decide.
    pub uplinks: Vec<String>,
    /// MTU of new pods; `None` means the uplinks decide.
    pub mtu: Option<u16>,
    /// What happens to protocol 4 of strangers.
    pub foreign_ipip: ForeignIpip,
    /// Whether pods leave the cluster with the node's address.
    pub masquerade: bool,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Folder from which the CNI plugins are installed; `None` installs none.
    pub cni_bin_source: Option<PathBuf>,
    /// Folder of the host's CNI plugins.
    pub cni_bin_dir: PathBuf,
    /// Folder where container runtimes look for the list of plugins; `None` writes none.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where `/livez` and `/readyz` are served.
    pub health: SocketAddr,
    /// Drop events that one CPU may write in a second.
    pub events_per_second: u32,
    /// Filter of the log, as `tracing_subscriber::EnvFilter` reads it.
    pub log: String,
    /// Form of the log.
    pub log_format: LogFormat,
}

/// Where the nodes come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NodeSourceKind {
    /// Kubernetes in a pod, else the inventory file.
    Auto,
    /// The inventory file.
    File,
    /// The Kubernetes API.
    Kubernetes,
}

/// What happens to protocol 4 of strangers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ForeignIpip {
    /// It is dropped.
    Drop,
    /// It goes to the host, for nodes with another IPIP tunnel.
    Pass,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {path}: {source}; remedy: correct --config or the file's permissions"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML of the expected form.
    #[error(
        "{path}, line {line} ({text:?}): {message}; remedy: correct this line, the keys are those of `ipip-agent --help` in camelCase"
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: u64,
        /// The line.
        text: String,
        /// What is wrong there.
        message: String,
    },
    /// Settings have values that cannot be used.
    #[error("{}", join(.0))]
    Values(Vec<Problem>),
}

/// One setting that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The key as it stands in the file.
    pub key: &'static str,
    /// The value given.
    pub value: String,
    /// Who gave it.
    pub origin: Origin,
    /// What to write instead.
    pub remedy: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            value,
            origin,
            remedy,
        } = self;
        write!(
            f,
            "{key}: {value:?} ({origin}) cannot be used; remedy: {remedy}"
        )
    }
}

/// Where a setting's value came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The file, at this line.
    File(u64),
    /// This environment variable.
    Environment(&'static str),
    /// This flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(line) => write!(f, "line {line} of the configuration file"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// The value of each key and where it came from.
pub type Texts = BTreeMap<&'static str, (String, Origin)>;

struct Key {
    name: &'static str,
    flag: &'static str,
    env: &'static str,
    default: &'static str,
    help: &'static str,
}

#[derive(Deserialize)]
struct Scalar(Spanned<String>);

#[derive(Deserialize)]
struct List(Vec<Spanned<String>>);

impl From<Scalar> for (String, Origin) {
    fn from(Scalar(text): Scalar) -> Self {
        (text.value, Origin::File(text.referenced.line()))
    }
}

impl From<List> for (String, Origin) {
    fn from(List(texts): List) -> Self {
        let line = texts.first().map_or(0, |text| text.referenced.line());
        let texts: Vec<String> = texts.into_iter().map(|text| text.value).collect();
        (texts.join(","), Origin::File(line))
    }
}

/// One list makes the keys of the file, the environment variables and the flags.
macro_rules! keys {
    ($($field:ident: $form:ident, $name:literal, $flag:literal, $env:literal, $default:literal, $help:literal;)*) => {
        const KEYS: &[Key] = &[$(Key { name: $name, flag: $flag, env: $env, default: $default, help: $help }),*];

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File { $(#[serde(rename = $name)] $field: Option<$form>,)* }

        impl File {
            fn into_texts(self) -> Texts {
                let mut texts = Texts::new();
                $(if let Some(value) = self.$field { texts.insert($name, value.into()); })*
                texts
            }
        }
    };
}

keys! {
    node_name: Scalar, "nodeName", "node-name", "IPIP_NODE_NAME", "", "Name of this node in the inventory [default: the host name]";
    node_source: Scalar, "nodeSource", "node-source", "IPIP_NODE_SOURCE", "auto", "kubernetes, file, or auto: kubernetes in a pod, else file";
    kubernetes_service_host: Scalar, "kubernetesServiceHost", "kubernetes-service-host", "IPIP_KUBERNETES_SERVICE_HOST", "", "Host of the API server, as this node reaches it without the tunnel [default: as the kubelet, else the cluster's Service]";
    kubernetes_service_port: Scalar, "kubernetesServicePort", "kubernetes-service-port", "IPIP_KUBERNETES_SERVICE_PORT", "6443", "Port of the API server at kubernetesServiceHost";
    kubeconfig: Scalar, "kubeconfig", "kubeconfig", "IPIP_KUBECONFIG", "", "A kubeconfig with address and credentials, for an agent outside a pod";
    kubelet_kubeconfigs: List, "kubeletKubeconfigs", "kubelet-kubeconfigs", "IPIP_KUBELET_KUBECONFIGS", "/run/ipip/api-server.conf,/etc/kubernetes/kubelet.conf,/var/lib/rancher/k3s/agent/kubelet.kubeconfig,/var/lib/rancher/rke2/agent/kubelet.kubeconfig,/var/lib/k0s/kubelet.conf,/var/snap/microk8s/current/credentials/kubelet.config,/var/lib/kubelet/kubeconfig", "Kubeconfigs of kubelets, with commas between; only the server's address is read";
    inventory: Scalar, "inventory", "inventory", "IPIP_INVENTORY", "/etc/ipip/inventory.yaml", "The inventory file";
    pin_root: Scalar, "pinRoot", "pin-root", "IPIP_PIN_ROOT", "/sys/fs/bpf/ipip", "Folder on bpffs for programs and maps";
    state_dir: Scalar, "stateDir", "state-dir", "IPIP_STATE_DIR", "/var/lib/ipip", "Folder for what must survive a restart";
    encapsulation: Scalar, "encapsulation", "encapsulation", "IPIP_ENCAPSULATION", "ipip", "ipip, udp or direct; a node of the inventory may override it";
    udp_port: Scalar, "udpPort", "udp-port", "IPIP_UDP_PORT", "5555", "UDP port of the udp encapsulation";
    uplinks: List, "uplinks", "uplinks", "IPIP_UPLINKS", "", "Interfaces that carry tunnel packets, with commas between [default: as the routes say]";
    mtu: Scalar, "mtu", "mtu", "IPIP_MTU", "auto", "MTU of new pods in bytes, or auto";
    foreign_ipip: Scalar, "foreignIpip", "foreign-ipip", "IPIP_FOREIGN_IPIP", "drop", "drop or pass: protocol 4 from strangers";
    masquerade: Scalar, "masquerade", "masquerade", "IPIP_MASQUERADE", "true", "true or false: pods leave the cluster with the node's address";
    attach: Scalar, "attach", "attach", "IPIP_ATTACH", "auto", "auto, tcx or clsact: how programs are attached";
    cni_bin_source: Scalar, "cniBinSource", "cni-bin-source", "IPIP_CNI_BIN_SOURCE", "", "Folder with the CNI plugins to install on this host [default: install none]";
    cni_bin_dir: Scalar, "cniBinDir", "cni-bin-dir", "IPIP_CNI_BIN_DIR", "/opt/cni/bin", "Folder of this host's CNI plugins";
    cni_conf_dir: Scalar, "cniConfDir", "cni-conf-dir", "IPIP_CNI_CONF_DIR", "", "Folder for the list of plugins, such as /etc/cni/net.d: this host's container runtimes then use them [default: write none]";
    health: Scalar, "health", "health", "IPIP_HEALTH", "127.0.0.1:9878", "Address and port of /livez and /readyz";
    events_per_second: Scalar, "eventsPerSecond", "events-per-second", "IPIP_EVENTS_PER_SECOND", "10", "Drop events that one CPU may report in a second";
    log: Scalar, "log", "log", "IPIP_LOG", "info", "Log filter: error, warn, info, debug, trace or target=level pairs";
    log_format: Scalar, "logFormat", "log-format", "IPIP_LOG_FORMAT", "text", "text or json";
}

/// The command line without its name and its verbs: `--config` and a flag for each key.
pub fn with_flags(command: Command) -> Command {
    let config = Arg::new("config")
        .long("config")
        .env("IPIP_CONFIG")
        .global(true)
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Configuration in YAML, with the keys below in camelCase");
    KEYS.iter().fold(command.arg(config), |command, key| {
        let help = if key.default.is_empty() {
            key.help.to_owned()
        } else {
            format!("{} [default: {}]", key.help, key.default)
        };
        command.arg(
            Arg::new(key.name)
                .long(key.flag)
                .env(key.env)
                .global(true)
                .action(ArgAction::Set)
                .value_name("VALUE")
                .help(help),
        )
    })
}

/// Reads the file that `matches` name and puts environment and flags over it.
pub fn load(matches: &ArgMatches, host_name: &str) -> Result<Config, ConfigError> {
    let mut texts = match matches.get_one::<PathBuf>("config") {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?;
            parse_file(path, &text)?
        }
        None => Texts::new(),
    };
    for key in KEYS {
        let origin = match matches.value_source(key.name) {
            Some(ValueSource::CommandLine) => Origin::Flag(key.flag),
            Some(ValueSource::EnvVariable) => Origin::Environment(key.env),
            _ => continue,
        };
        if let Some(text) = matches.get_one::<String>(key.name) {
            texts.insert(key.name, (text.clone(), origin));
        }
    }
    judge(texts, host_name)
}

/// The keys of the configuration file at `path`, whose content is `text`.
pub fn parse_file(path: &Path, text: &str) -> Result<Texts, ConfigError> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Texts::new());
    }
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        ConfigError::Form {
            path: path.to_owned(),
            line,
            text: crate::yaml::line(text, line),
            message: error.without_snippet().to_string(),
        }
    })?;
    Ok(file.into_texts())
}

/// The settings as a whole, or everything that is wrong with them.
pub fn judge(texts: Texts, host_name: &str) -> Result<Config, ConfigError> {
    let mut judge = Judge {
        texts,
        host_name,
        problems: Vec::new(),
    };
    let node_name = judge.take(
        "nodeName",
        "a name as Kubernetes gives it: lower-case letters, digits, - and ., at most 253",
        |text| inventory::is_node_name(text).then(|| text.to_owned()),
    );
    let node_source = judge.take(
        "nodeSource",
        "auto, kubernetes or file",
        |text| match text {
            "auto" => Some(NodeSourceKind::Auto),
            "kubernetes" => Some(NodeSourceKind::Kubernetes),
            "file" => Some(NodeSourceKind::File),
            _ => None,
        },
    );
    let kubernetes_service_host = judge.take(
        "kubernetesServiceHost",
        "a host name or an address without port, or nothing",
        |text| match text {
            "" => Some(None),
            _ => is_host(text).then(|| Some(text.to_owned())),
        },
    );
    let kubernetes_service_port = judge.port("kubernetesServicePort");
    let kubeconfig = judge.take("kubeconfig", "a path, or nothing", |text| {
        Some((!text.is_empty()).then(|| text.into()))
    });
    let kubelet_kubeconfigs = judge.take(
        "kubeletKubeconfigs",
        "absolute paths, or nothing",
        parse_paths,
    );
    let inventory = judge.path("inventory");
    let pin_root = judge.path("pinRoot");
    let state_dir = judge.path("stateDir");
    let encapsulation = judge.take("encapsulation", "ipip, udp or direct", encapsulation::parse);
    let udp_port = judge.port("udpPort");
    let uplinks = judge.take(
        "uplinks",
        "names of interfaces, each at most 15 bytes, or nothing",
        parse_uplinks,
    );
    let mtu = judge.take(
        "mtu",
        "auto, or bytes from 576 to 65535",
        |text| match text {
            "auto" => Some(None),
            _ => text.parse().ok().filter(|&mtu: &u16| mtu >= 576).map(Some),
        },
    );
    let foreign_ipip = judge.take("foreignIpip", "drop or pass", |text| match text {
        "drop" => Some(ForeignIpip::Drop),
        "pass" => Some(ForeignIpip::Pass),
        _ => None,
    });
    let masquerade = judge.parse("masquerade", "true or false");
    let attach = judge.parse("attach", "auto, tcx or clsact");
    let cni_bin_source = judge.optional_path("cniBinSource");
    let cni_bin_dir = judge.path("cniBinDir");
    let cni_conf_dir = judge.optional_path("cniConfDir");
    let health = judge.parse("health", "an address and a port, like 127.0.0.1:9878");
    let events_per_second = judge.parse("eventsPerSecond", "a number from 0 to 4294967295");
    let log = judge.take(
        "log",
        "error, warn, info, debug, trace or target=level pairs with commas between",
        |text| EnvFilter::try_new(text).is_ok().then(|| text.to_owned()),
    );
    let log_format = judge.take("logFormat", "text or json", |text| match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    });
    let whole = || {
        Some(Config {
            node_name: node_name?,
            node_source: node_source?,
            kubernetes_service_host: kubernetes_service_host?,
            kubernetes_service_port: kubernetes_service_port?,
            kubeconfig: kubeconfig?,
            kubelet_kubeconfigs: kubelet_kubeconfigs?,
            inventory: inventory?,
            pin_root: pin_root?,
            state_dir: state_dir?,
            encapsulation: encapsulation?,
            udp_port: udp_port?,
            uplinks: uplinks?,
            mtu: mtu?,
            foreign_ipip: foreign_ipip?,
            masquerade: masquerade?,
            attach: attach?,
            cni_bin_source: cni_bin_source?,
            cni_bin_dir: cni_bin_dir?,
            cni_conf_dir: cni_conf_dir?,
            health: health?,
            events_per_second: events_per_second?,
            log: log?,
            log_format: log_format?,
        })
    };
    whole().ok_or(ConfigError::Values(judge.problems))
}

struct Judge<'a> {
    texts: Texts,
    host_name: &'a str,
    problems: Vec<Problem>,
}

impl Judge<'_> {
    fn take<T>(
        &mut self,
        key: &'static str,
        remedy: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (value, origin) = self.texts.remove(key).unwrap_or_else(|| {
            let default = match key {
                "nodeName" => self.host_name,
                _ => KEYS
                    .iter()
                    .find(|k| k.name == key)
                    .map_or("", |k| k.default),
            };
            (default.to_owned(), Origin::Default)
        });
        let taken = read(&value);
        if taken.is_none() {
            self.problems.push(Problem {
                key,
                value,
                origin,
                remedy,
            });
        }
        taken
    }

    fn parse<T: FromStr>(&mut self, key: &'static str, remedy: &'static str) -> Option<T> {
        self.take(key, remedy, |text| text.parse().ok())
    }

    fn port(&mut self, key: &'static str) -> Option<u16> {
        self.take(key, "a port from 1 to 65535", |text| {
            text.parse().ok().filter(|&port: &u16| port != 0)
        })
    }

    fn optional_path(&mut self, key: &'static str) -> Option<Option<PathBuf>> {
        self.take(key, "a path, or nothing", |text| {
            Some((!text.is_empty()).then(|| text.into()))
        })
    }

    fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.take(key, "a path", |text| {
            (!text.is_empty()).then(|| text.into())
        })
    }
}

fn parse_uplinks(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|name| {
            let usable = !name.is_empty()
                && name.len() <= 15
                && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            usable.then(|| name.to_owned())
        })
        .collect()
}

fn parse_paths(text: &str) -> Option<Vec<PathBuf>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|path| Path::new(path).is_absolute().then(|| path.into()))
        .collect()
}

fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || inventory::is_node_name(&text.to_ascii_lowercase())
}

fn join(problems: &[Problem]) -> String {
    let texts: Vec<String> = problems.iter().map(Problem::to_string).collect();
    texts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_args(args: &[&str]) -> Result<Config, ConfigError> {
        let command = with_flags(Command::new("ipip-agent"));
        let matches = command.get_matches_from([&["ipip-agent"], args].concat());
        load(&matches, "host-1")
    }

    #[test]
    fn without_any_setting_the_defaults_are_a_whole_configuration() {
        let config = from_args(&[]).unwrap();
        assert_eq!(config.node_name, "host-1");
        assert_eq!(config.encapsulation, Encapsulation::Ipip);
        assert_eq!(config.udp_port, ipip_abi::DEFAULT_UDP_PORT);
        assert_eq!(config.mtu, None);
        assert_eq!(config.pin_root, Path::new(ipip_datapath::DEFAULT_PIN_ROOT));
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
        let error = judge(texts, "UPPER").unwrap_err().to_string();
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
        for key in KEYS {
            let split = |with: char| {
                key.name.chars().fold(String::new(), |mut name, c| {
                    if c.is_uppercase() {
                        name.push(with);
                    }
                    name.push(c.to_ascii_lowercase());
                    name
                })
            };
            assert_eq!(key.flag, split('-'));
            assert_eq!(key.env, format!("IPIP_{}", split('_').to_uppercase()));
        }
    }
}
