//! The reference plugin `bridge` on each node: pods run, but nothing connects the nodes.

use super::{Cluster, Machine};
use crate::topology::NodeSpec;
use anyhow::{Context, Result};
use ipip_testkit::wait;
use serde_json::{Value, json};
use std::time::Duration;

const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Installs the plugins, and a configuration for the node's own pod CIDR.
pub fn install(cluster: &Cluster, machine: &Machine, spec: &NodeSpec) -> Result<()> {
    for plugin in PLUGINS {
        let program = cluster.tools().program(plugin);
        let program = program.to_str().context("the path is not UTF-8")?;
        machine.run("cp", &["--dereference", program, "/opt/cni/bin/"])?;
    }
    let mut pods = Value::Null;
    let what = format!("{} has a pod CIDR", spec.name);
    wait::within(Duration::from_secs(60), &what, || {
        pods = cluster.get(&format!("node/{}", spec.name), None)?["spec"]["podCIDR"].clone();
        Ok(!pods.is_null())
    })?;
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pods }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    machine.write("/etc/cni/net.d/10-lab.conflist", &list.to_string())
}
