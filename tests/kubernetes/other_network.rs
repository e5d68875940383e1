//! Another CNI network on the same node.

use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::scenarios::Workloads;
use ipip_testkit::{harness::Test, tests, wait};
use std::time::Duration;

const OTHER: &str = "/etc/cni/net.d/05-other.conflist";
const TEXT: &str = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}"#;
/// An agent resyncs every 30 seconds.
const MAX_WAIT: Duration = Duration::from_secs(60);

pub const TESTS: &[Test<Workloads>] = tests![another_network_on_a_node_is_reported_and_left_alone];

fn another_network_on_a_node_is_reported_and_left_alone(workloads: &Workloads) -> Result<()> {
    let a2 = workloads.cluster.machine("a2")?;
    a2.write(OTHER, TEXT)?;
    let reported = wait::within(MAX_WAIT, "an Event on a2 names the other network", || {
        let described = workloads.cluster.kubectl(&["describe", "node", "a2"])?;
        Ok(described.contains("IpipOtherNetwork") && described.contains("05-other.conflist"))
    });
    let text = a2.run("cat", &[OTHER]);
    a2.run("rm", &[OTHER])?;
    reported?;
    ensure!(text? == TEXT, "the other network's file was changed");
    let ours = a2.run("cat", &["/etc/cni/net.d/01-ipip.conflist"])?;
    let ours: serde_json::Value = serde_json::from_str(&ours).context("our own list")?;
    ensure!(ours["plugins"][0]["type"] == "ipip", "{ours}");
    Ok(())
}
