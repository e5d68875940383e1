//! Commands to explore a lab that keeps running, each for a shell outside of it.

use crate::{Lab, topology};
use anyhow::Result;
use ipip_testkit::{host::Host, shell};
use std::env;

/// A command and its purpose.
#[derive(Clone, Debug)]
pub struct Hint {
    /// The machine, or the subject of the output.
    pub what: String,
    /// The command line.
    pub command: String,
}

/// Opens a shell on each machine of the lab.
pub fn machines(lab: &Lab) -> Vec<Hint> {
    let fabric = lab.fabric();
    let mut hints = Vec::new();
    for node in lab.nodes() {
        let name = &node.spec().name;
        let what = format!("node {name}, InternalIP {}", node.internal_ip());
        hints.push(shell_on(what, node));
    }
    for pod in lab.pods() {
        let what = format!("pod on {}, {}", pod.node().spec().name, pod.address());
        hints.push(shell_on(what, pod));
    }
    for (cloud, gateway) in &fabric.gateways {
        hints.push(shell_on(format!("gateway of {cloud}"), gateway));
    }
    hints.push(shell_on("the Internet".into(), &fabric.internet));
    let web = format!("web server, {}", topology::WEB);
    hints.push(shell_on(web, &fabric.web));
    let stranger = format!("stranger, {}", topology::STRANGER);
    hints.push(shell_on(stranger, &fabric.stranger));
    hints
}

/// Shows the datapath of the first node. `ipipctl` must run in the node's network namespace, because
/// it compares the pins with the interfaces there, and must see the pins, which are below the
/// `/sys/fs/bpf` of this machine: `nsenter --net` gives both, while `ip netns exec` hides the pins.
pub fn datapath(lab: &Lab) -> Result<Vec<Hint>> {
    let ipipctl = shell::own_program("ipipctl")?;
    let mut hints = Vec::new();
    if let Some(node) = lab.nodes().first() {
        for verb in ["status", "peers", "drops", "dump"] {
            let command = format!(
                "{} {} --pin-root {} {verb}",
                enter(node),
                ipipctl.display(),
                node.pins().root().display()
            );
            let what = format!("{verb} of node {}", node.spec().name);
            hints.push(Hint { what, command });
        }
    }
    Ok(hints)
}

fn shell_on(what: String, host: &Host) -> Hint {
    Hint {
        what,
        command: enter(host),
    }
}

/// Enters the network namespace of a machine; through sudo if the lab was started through it.
fn enter(host: &Host) -> String {
    let sudo = env::var_os("SUDO_UID").map_or("", |_| "sudo ");
    format!("{sudo}nsenter --net={}", host.netns_path())
}
