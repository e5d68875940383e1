//! The kubectl that `cargo xtask cluster kubectl` runs for a user.

use anyhow::{Result, ensure};
use ipip_lab::kubernetes::{ClusterState, scenarios::Workloads};
use ipip_testkit::{harness::Test, shell, tests};
use std::fs;
use tempfile::TempDir;

const MAP: &str = "apiVersion: v1
kind: ConfigMap
metadata:
  name: of-the-user
";
const KUSTOMIZATION: &str = "resources: [map.yaml]\n";

pub const TESTS: &[Test<Workloads>] =
    tests![kubectl_of_the_command_cluster_reads_files_relative_to_the_users_directory];

/// `-f` of a file and `-k` of a folder.
fn kubectl_of_the_command_cluster_reads_files_relative_to_the_users_directory(
    workloads: &Workloads,
) -> Result<()> {
    let state = ClusterState::read(workloads.cluster.prefix())?;
    let folder = TempDir::new()?;
    fs::write(folder.path().join("map.yaml"), MAP)?;
    fs::write(folder.path().join("kustomization.yaml"), KUSTOMIZATION)?;
    for (verb, option, path) in [("apply", "-f", "map.yaml"), ("delete", "-k", ".")] {
        let mut command = state.kubectl()?;
        command
            .current_dir(folder.path())
            .args([verb, option, path]);
        let said = shell::printed("kubectl", command.output())?;
        ensure!(said.contains("of-the-user"), "{said}");
    }
    Ok(())
}
