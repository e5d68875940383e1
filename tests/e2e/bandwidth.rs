//! The reference plugin `bandwidth` of Debian and Ubuntu limits our pods.

use anyhow::Result;
use ipip_datapath::AttachMode;
use ipip_lab::{Lab, bandwidth};
use ipip_testkit::{cni_node::PLUGINS, harness::Test, tests};
use std::path::Path;

pub const TESTS: &[Test<Lab>] = tests![a_limited_pod_sends_and_receives_at_its_rate];
pub const CLSACT_TESTS: &[Test<Lab>] =
    tests![with_clsact_a_pod_receives_at_its_rate_and_a_limit_of_sending_is_refused];

fn a_limited_pod_sends_and_receives_at_its_rate(lab: &Lab) -> Result<()> {
    if !AttachMode::Auto.is_tcx()? {
        return Ok(());
    }
    bandwidth::expect_limits_hold(lab, &Path::new(PLUGINS).join("bandwidth"))
}

fn with_clsact_a_pod_receives_at_its_rate_and_a_limit_of_sending_is_refused(
    lab: &Lab,
) -> Result<()> {
    bandwidth::expect_clsact_refuses_egress_limits(lab, &Path::new(PLUGINS).join("bandwidth"))
}
