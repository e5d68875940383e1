//! The current version of the plugin `bandwidth` limits our pods, between clouds and within a node.

use anyhow::Result;
use ipip_lab::{Lab, Topology, bandwidth, kubernetes::Tools};

#[test]
fn a_limited_pod_sends_and_receives_at_its_rate() -> Result<()> {
    let tools = Tools::find_some(&["bandwidth"])?;
    let lab = Lab::start(Topology::three_clouds())?;
    bandwidth::expect_limits_hold(&lab, &tools.program("bandwidth"))
}
