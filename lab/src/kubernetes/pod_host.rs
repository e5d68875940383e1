//! The network of a pod, for sockets of a test.

use super::Cluster;
use anyhow::{Context, Result};
use ipip_testkit::{host::Host, trash::Trash};
use serde_json::Value;
use std::ops::Deref;

/// The container of a pod that has one, by the object of the pod, as containerd calls it.
pub fn container_id(pod: &Value) -> Result<&str> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    let id = id.and_then(|id| id.strip_prefix("containerd://"));
    id.with_context(|| format!("{} has no container", pod["metadata"]["name"]))
}

/// The network of a pod as a [`Host`]. Dropping it removes the name of the namespace, not the pod.
#[derive(Debug)]
pub struct PodHost {
    host: Host,
    trash: Trash,
}

impl PodHost {
    /// The network of a pod of the namespace `default` that runs on `node`.
    pub(super) fn attach(cluster: &Cluster, node: &str, pod: &str) -> Result<Self> {
        let object = cluster.get(&format!("pod/{pod}"), None)?;
        let id = container_id(&object)?;
        let machine = cluster.machine(node)?;
        // TASK PID STATUS
        let tasks = machine.run("ctr", &["--namespace", "k8s.io", "tasks", "list"])?;
        let mut tasks = tasks.lines().map(str::split_whitespace);
        let process = tasks.find_map(|mut it| it.next().filter(|task| *task == id).and(it.next()));
        let process = process.and_then(|it| it.parse().ok());
        let process = process.with_context(|| format!("{pod} has no process"))?;
        let trash = cluster.trash().clone();
        let name = format!("{}-{pod}", cluster.prefix());
        Ok(Self {
            host: Host::attach(name, process, &trash)?,
            trash,
        })
    }
}

impl Deref for PodHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Drop for PodHost {
    fn drop(&mut self) {
        if self.trash.settled() {
            return;
        }
        if let Err(error) = self.host.remove(&self.trash) {
            eprintln!("removing the name of a pod's namespace: {error:#}");
        }
    }
}
