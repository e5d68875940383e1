//! Certificates and kubeconfigs, made by kubeadm's own phases.

use super::{Machine, settings::Settings};
use anyhow::Result;

/// The port of the API server.
pub const API_PORT: u16 = 6443;

const CONFIG: &str = "/etc/kubernetes/kubeadm.yaml";

/// The folder into which kubeadm writes the certificates.
pub const PKI: &str = "/etc/kubernetes/pki";

/// Makes the certificates, and the kubeconfigs of the administrator and of the control plane, on the control
/// plane's machine. Other machines connect to its public endpoint.
pub fn create(control_plane: &Machine, settings: &Settings) -> Result<()> {
    let node = settings.control_plane()?;
    let private = node.addresses[0];
    let public = settings.api_server()?;
    let config = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint:
  advertiseAddress: {private}
  bindPort: {API_PORT}
nodeRegistration:
  name: {name}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {version}
controlPlaneEndpoint: {public}
certificatesDir: {PKI}
networking:
  podSubnet: {pods}
  serviceSubnet: {services}
apiServer:
  certSANs: [{public_ip}, {private}, localhost]
",
        name = node.name,
        version = control_plane
            .run("kubeadm", &["version", "-o", "short"])?
            .trim(),
        pods = settings.pod_network,
        services = settings.service_network,
        public_ip = public.ip(),
    );
    control_plane.write(CONFIG, &config)?;
    for what in ["certs", "kubeconfig"] {
        control_plane.run(
            "kubeadm",
            &["init", "phase", what, "all", "--config", CONFIG],
        )?;
    }
    Ok(())
}

/// A kubeconfig for a user, who is a member of `group` if it is given.
pub fn kubeconfig(control_plane: &Machine, user: &str, group: Option<&str>) -> Result<String> {
    let mut arguments = vec![
        "kubeconfig",
        "user",
        "--config",
        CONFIG,
        "--client-name",
        user,
    ];
    if let Some(group) = group {
        arguments.extend(["--org", group]);
    }
    control_plane.run("kubeadm", &arguments)
}

/// The certificate of the cluster's authority.
pub fn authority(control_plane: &Machine) -> Result<String> {
    control_plane.run("cat", &[&format!("{PKI}/ca.crt")])
}
