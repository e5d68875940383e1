//! Nightly areas that are one command each.

use crate::{bench, demo, image};
use anyhow::Result;

/// Builds the image for both processors; one that is too large is refused.
pub fn images() -> Result<()> {
    image::product(&[image::Arch::Amd64, image::Arch::Arm64]).map(drop)
}

/// Runs both demos.
pub fn demos() -> Result<()> {
    demo::clouds(false)?;
    demo::kubernetes()
}

/// Runs the short forms of the benchmark and of that with many peers.
pub fn bench() -> Result<()> {
    bench::bench(&["--quick"])?;
    let peers = ["peers", "--peers", "200", "--active", "20"];
    bench::bench(&[&peers[..], &["--seconds", "5", "--settle", "0"]].concat())
}
