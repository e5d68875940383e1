//! Chooses the address of the API server and the credentials. The choice is made before any tunnel exists,
//! so the cluster's Service is the last resort.

use crate::config::Config;
use kube::{
    Config as ClientConfig,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Folder of the pod's service account: CA certificate and token.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The chosen API server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Choice {
    /// The URL.
    pub url: String,
    /// The reason.
    pub why: Why,
}

/// The source of the API server's address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Why {
    /// `kubernetesServiceHost`.
    Configured,
    /// This kubeconfig of the node's kubelet.
    Kubelet(PathBuf),
    /// The environment variables of the cluster's Service, which every pod has.
    Service,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("kubernetesServiceHost is set"),
            Self::Kubelet(path) => write!(
                f,
                "kubernetesServiceHost is not set, and the kubelet uses this server ({})",
                path.display()
            ),
            Self::Service => f.write_str(
                "kubernetesServiceHost is not set, no kubeconfig of a kubelet exists, so the cluster's Service is used",
            ),
        }
    }
}

/// The configuration does not lead to an API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No setting, kubeconfig or environment variable names it.
    #[error(
        "kubernetesServiceHost: nothing names the API server; remedy: set it, or kubeconfig, or `nodeSource: file`"
    )]
    Unknown,
    /// The address is not a URL.
    #[error("the API server's URL {0:?} cannot be used; remedy: set kubernetesServiceHost")]
    Url(String),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig: {path}: {source}; remedy: correct the path or the file")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<KubeconfigError>,
    },
    /// The pod's service account cannot be read.
    #[error(
        "cannot read {path}: {source}; remedy: `automountServiceAccountToken: true`, or set kubeconfig"
    )]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The address of the API server: the configured one, otherwise the kubelet's, otherwise that of the
/// cluster's Service. `environment` reads a variable of this process.
///
/// # Errors
/// [`Error::Unknown`] if none of these exists.
pub fn choose(
    config: &Config,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Choice, Error> {
    if let Some(host) = &config.kubernetes_service_host {
        return Ok(Choice {
            url: url(host, config.kubernetes_service_port),
            why: Why::Configured,
        });
    }
    let mut kubelet = config.kubelet_kubeconfigs.iter();
    if let Some((path, url)) = kubelet.find_map(|path| Some((path, server(path)?))) {
        return Ok(Choice {
            url,
            why: Why::Kubelet(path.clone()),
        });
    }
    let set = |name| environment(name).filter(|value| !value.is_empty());
    let host = set("KUBERNETES_SERVICE_HOST").ok_or(Error::Unknown)?;
    let port = set("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok());
    Ok(Choice {
        url: url(&host, port.unwrap_or(443)),
        why: Why::Service,
    })
}

/// The URL of the server in a kubeconfig, or `None` if it cannot be read. Credentials are not used.
pub fn server(path: &Path) -> Option<String> {
    let kubeconfig = Kubeconfig::read_from(path).ok()?;
    let current = kubeconfig.current_context.as_deref();
    let context = kubeconfig
        .contexts
        .iter()
        .find(|it| Some(it.name.as_str()) == current);
    let named = context
        .and_then(|it| it.context.as_ref())
        .map(|it| &it.cluster);
    let is_named = |name: &String| named.is_none_or(|named| named == name);
    let cluster = kubeconfig.clusters.iter().find(|it| is_named(&it.name))?;
    cluster.cluster.as_ref()?.server.clone()
}

/// A kubeconfig that contains only the server `url`.
pub fn reduced(url: &str) -> String {
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubelet", "cluster": {"server": url}}],
    });
    // JSON is YAML.
    format!("{kubeconfig}\n")
}

/// The client's configuration, and why this API server is chosen.
///
/// # Errors
/// No API server is named, or credentials cannot be read.
pub async fn client_config(config: &Config) -> Result<(ClientConfig, String), Error> {
    if let Some(path) = &config.kubeconfig {
        let refused = |source| Error::Kubeconfig {
            path: path.clone(),
            source: Box::new(source),
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(refused)?;
        let options = KubeConfigOptions::default();
        let client = ClientConfig::from_custom_kubeconfig(kubeconfig, &options).await;
        return Ok((client.map_err(refused)?, "kubeconfig is set".into()));
    }
    let choice = choose(config, |name| std::env::var(name).ok())?;
    let url = choice.url.parse().map_err(|_| Error::Url(choice.url))?;
    let mut client = ClientConfig::new(url);
    let file = |name| {
        let path = Path::new(SERVICE_ACCOUNT).join(name);
        match fs::metadata(&path) {
            Ok(_) => Ok(path),
            Err(source) => Err(Error::ServiceAccount { path, source }),
        }
    };
    // The client reads both files again from time to time, because the kubelet replaces them.
    client.root_cert_file = Some(file("ca.crt")?);
    // `None` would load the system's certificates; the image has none.
    client.root_cert = Some(Vec::new());
    client.auth_info.token_file = Some(file("token")?.to_string_lossy().into_owned());
    Ok((client, choice.why.to_string()))
}

fn url(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;

    fn config(pairs: &[(&'static str, &str)]) -> Config {
        from_pairs("a1", pairs)
    }

    fn pod(name: &str) -> Option<String> {
        match name {
            "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".into()),
            "KUBERNETES_SERVICE_PORT" => Some("443".into()),
            _ => None,
        }
    }

    #[test]
    fn the_configured_address_beats_the_kubelets_which_beats_the_service() {
        let folder = tempfile::TempDir::new().unwrap();
        let kubelet = folder.path().join("kubelet.conf");
        let path = kubelet.to_str().unwrap();
        let all = [
            ("kubernetesServiceHost", "203.0.113.1"),
            ("kubernetesServicePort", "443"),
            ("kubeletKubeconfigs", path),
        ];
        let choice = choose(&config(&all), pod).unwrap();
        assert_eq!(choice.url, "https://203.0.113.1:443");
        assert_eq!(choice.why, Why::Configured);

        // The kubeconfig does not exist yet.
        let choice = choose(&config(&all[2..]), pod).unwrap();
        assert_eq!(choice.url, "https://10.96.0.1:443");
        assert_eq!(choice.why, Why::Service);

        let text = "
apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: here, context: {cluster: ours, user: kubelet}}
clusters:
- {name: other, cluster: {server: \"https://192.0.2.1:6443\"}}
- {name: ours, cluster: {server: \"https://cp.example:6443\"}}
users:
- {name: kubelet, user: {client-key: /nowhere}}
";
        fs::write(&kubelet, text).unwrap();
        let choice = choose(&config(&all[2..]), pod).unwrap();
        assert_eq!(choice.url, "https://cp.example:6443");
        assert_eq!(choice.why, Why::Kubelet(kubelet));
    }

    #[test]
    fn without_any_address_the_error_names_the_remedy() {
        let error = choose(&config(&[("kubeletKubeconfigs", "")]), |_| None).unwrap_err();
        assert!(
            error.to_string().contains("kubernetesServiceHost"),
            "{error}"
        );
    }

    #[test]
    fn an_ipv6_host_is_bracketed() {
        assert_eq!(url("2001:db8::1", 6443), "https://[2001:db8::1]:6443");
    }
}
