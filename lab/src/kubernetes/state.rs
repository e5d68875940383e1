//! The file from which another process learns how to enter a running cluster.

use super::{Cluster, folder_of};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The administrator's kubeconfig on the control plane's machine.
const KUBECONFIG: &str = "/etc/kubernetes/admin.conf";

/// A running cluster, as its folder describes it.
#[derive(Debug, Deserialize, Serialize)]
pub struct ClusterState {
    /// The process that holds each machine's namespaces, by the machine's name.
    pub machines: BTreeMap<String, i32>,
    /// The machine with the control plane.
    pub control_plane: String,
    /// The administrator's kubeconfig, as seen from outside the machines.
    pub kubeconfig: PathBuf,
    /// PATH on the machines.
    pub path: String,
}

impl ClusterState {
    pub(super) fn of(cluster: &Cluster) -> Self {
        Self {
            machines: cluster
                .machines()
                .iter()
                .map(|machine| (machine.hostname().to_string(), machine.holder().as_raw()))
                .collect(),
            control_plane: cluster.control_plane().hostname().into(),
            kubeconfig: cluster.control_plane().written(KUBECONFIG),
            path: cluster.tools().search_path(),
        }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(folder.join("cluster.json"), text).context("writing cluster.json")
    }

    /// Reads the state of the cluster with this name.
    pub fn read(prefix: &str) -> Result<Self> {
        let path = folder_of(prefix).join("cluster.json");
        let text = fs::read_to_string(&path).with_context(|| {
            format!(
                "no cluster runs: {} is absent; remedy: start one with `cargo xtask cluster up`",
                path.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// A command that runs `program` on a machine, in its root directory.
    pub fn command(&self, machine: &str, program: &str) -> Result<Command> {
        let mut command = self.nsenter(machine)?;
        command
            .args(["--mount", "--uts", "--net", "--wd=/", "--", program])
            .env("KUBECONFIG", KUBECONFIG);
        Ok(command)
    }

    /// A command that runs kubectl as the administrator, on the network of the control plane's machine.
    ///
    /// It stays in the caller's mount namespace and working directory, so a path that the user gives to
    /// kubectl, relative or not, names the user's own file.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = self.nsenter(&self.control_plane)?;
        command
            .args(["--net", "--", "kubectl"])
            .env("KUBECONFIG", &self.kubeconfig);
        Ok(command)
    }

    /// `nsenter` into a machine; the caller adds the namespaces and the program.
    fn nsenter(&self, machine: &str) -> Result<Command> {
        let Some(holder) = self.machines.get(machine) else {
            let names: Vec<&str> = self.machines.keys().map(String::as_str).collect();
            bail!(
                "no node is called {machine}; there are {}",
                names.join(", ")
            );
        };
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &holder.to_string()])
            .env("PATH", &self.path);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_stays_in_the_mount_namespace_and_the_directory_of_the_user() {
        let state = ClusterState {
            machines: [("a1".to_owned(), 4711)].into(),
            control_plane: "a1".into(),
            kubeconfig: "/tmp/cluster/admin.conf".into(),
            path: "/tools:/bin".into(),
        };
        let command = state.kubectl().unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["--target", "4711", "--net", "--", "kubectl"]);
        assert_eq!(command.get_current_dir(), None);
    }
}
