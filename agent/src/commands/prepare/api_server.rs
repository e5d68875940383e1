//! The API server's address, copied from the kubelet's own configuration to a file that the agent
//! may read. Credentials are not copied.

use super::Error;
use crate::{config::Config, nodes::kubernetes::api_server};
use std::path::Path;
use tracing::info;

/// Writes the address that the kubelet uses to `file`. If no kubeconfig of a kubelet exists, nothing
/// is written.
pub fn write(config: &Config, file: &Path) -> Result<(), Error> {
    let found = config
        .kubelet_kubeconfigs
        .iter()
        .filter(|path| *path != file)
        .find_map(|path| Some((path, api_server::server(path)?)));
    let Some((path, url)) = found else {
        info!("no kubeconfig of a kubelet names the API server");
        return Ok(());
    };
    super::write(file, &api_server::reduced(&url))?;
    info!(url, from = %path.display(), "API server address copied");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;
    use std::fs;

    #[test]
    fn the_agent_reads_the_written_file_before_any_kubeconfig() {
        let first = &from_pairs("a1", &[]).kubelet_kubeconfigs[0];
        assert_eq!(first, Path::new(super::super::API_SERVER_FILE));
    }

    #[test]
    fn the_address_is_copied_and_the_kubelets_credentials_are_not() {
        let folder = tempfile::TempDir::new().unwrap();
        let (kubelet, reduced) = (
            folder.path().join("kubelet.conf"),
            folder.path().join("out"),
        );
        let text = "
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: \"https://192.0.2.1:6443\"}}]
users: [{name: u, user: {token: secret}}]
";
        fs::write(&kubelet, text).unwrap();
        let config = from_pairs("a1", &[("kubeletKubeconfigs", kubelet.to_str().unwrap())]);
        write(&config, &reduced).unwrap();
        let server = api_server::server(&reduced);
        assert_eq!(server.as_deref(), Some("https://192.0.2.1:6443"));
        assert!(!fs::read_to_string(&reduced).unwrap().contains("secret"));
    }
}
