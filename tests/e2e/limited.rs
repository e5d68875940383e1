//! The reference plugin `bandwidth`, as Debian and Ubuntu have it, limits our pods.

use anyhow::Result;
use ipip_datapath::AttachMode;
use ipip_lab::{Lab, limited};
use ipip_testkit::{cni_node::PLUGINS, harness::Test, tests};
use std::path::Path;

pub const TESTS: &[Test<Lab>] = tests![what_a_limited_pod_sends_and_gets_is_limited];
pub const CLSACT_TESTS: &[Test<Lab>] =
    tests![by_clsact_what_a_pod_gets_is_limited_and_a_limit_of_what_it_sends_is_refused];

fn what_a_limited_pod_sends_and_gets_is_limited(lab: &Lab) -> Result<()> {
    if !AttachMode::Auto.is_tcx()? {
        return Ok(());
    }
    limited::prove(lab, &Path::new(PLUGINS).join("bandwidth"))
}

fn by_clsact_what_a_pod_gets_is_limited_and_a_limit_of_what_it_sends_is_refused(
    lab: &Lab,
) -> Result<()> {
    limited::is_refused_by_clsact(lab, &Path::new(PLUGINS).join("bandwidth"))
}
