//! A private route between two clouds, as VPC peering makes it.

use super::{FAILOVER, RETURN, traffic::Traffic, wait_for_all_paths, wait_for_path};
use anyhow::Result;
use ipip_abi::Candidate;
use ipip_lab::{Lab, LabNode, peering::Peering};
use ipip_testkit::{harness::Test, tests};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// For clouds that [are kept apart](ipip_lab::peering::keep_clouds_apart).
pub const TESTS: &[Test<Lab>] =
    tests![a_private_route_between_two_clouds_is_used_soon_and_left_soon];

const PER_SECOND: u64 = 2000;

fn a_private_route_between_two_clouds_is_used_soon_and_left_soon(lab: &Lab) -> Result<()> {
    wait_for_all_paths(lab)?;
    let (one, other) = (lab.pod("a1")?, lab.pod("c1")?);
    let ends = [&**one.node(), &**other.node()];
    let traffic = Traffic::start(one, other, 7000, PER_SECOND)?;
    traffic.wait_for(PER_SECOND)?;

    let peering = Peering::start(lab.fabric(), lab.topology(), ["cloud-a", "cloud-c"])?;
    let added = Instant::now();
    wait_for_path(ends, Candidate::PrivateIpip, RETURN)?;
    let seconds = added.elapsed().as_secs_f64();
    eprintln!("a private route is used after {seconds:.1} s");
    traffic.wait_for(PER_SECOND)?;
    let further = Traffic::start(one, other, 7001, PER_SECOND)?;
    traffic.stop()?.lost_nothing()?;
    // From c1, the addresses of cloud-b now lead into cloud-a.
    let of_b = |node: &&Arc<LabNode>| node.spec().cloud == "cloud-b";
    for node in lab.nodes().iter().filter(of_b) {
        wait_for_path([ends[1], node], Candidate::PublicIpip, Duration::ZERO)?;
    }

    drop(peering);
    wait_for_path(ends, Candidate::PublicIpip, FAILOVER * 2)?;
    further.wait_for(PER_SECOND)?;
    further.stop()?.failed_over("a private route is removed")?;
    wait_for_all_paths(lab)
}
