//! The plugin `bandwidth` of today limits our pods, between clouds and within a node.

use anyhow::Result;
use ipip_lab::{Lab, Topology, kubernetes::Tools, limited};

#[test]
fn what_a_limited_pod_sends_and_gets_is_limited() -> Result<()> {
    let tools = Tools::find_some(&["bandwidth"])?;
    let lab = Lab::start(Topology::three_clouds())?;
    limited::prove(&lab, &tools.program("bandwidth"))
}
