//! Masquerading: packets of this node's pods leave the cluster with the node's address.
//!
//! One nftables table of our own, replaced as a whole in one transaction; rules of others are
//! never touched. NAT looks only at the first packet of a connection, so a replacement disturbs
//! none that is there.

use crate::ipip0;
use ipnetwork::Ipv4Network;
use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

/// Name of the table, of the family `ip`.
pub const TABLE: &str = "ipip";

/// Why nftables is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no `nft`, or it cannot be run.
    #[error("cannot run nft: {0}; remedy: install nftables, or set `masquerade: false`")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("nft refused: {0}; remedy: a kernel with nf_tables and NAT, or `masquerade: false`")]
    Refused(String),
}

/// What the table holds: the pods' ranges for which it masquerades, none if there is no table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Masquerade {
    /// Pod CIDRs of this node.
    pub pods: Vec<Ipv4Network>,
}

impl Masquerade {
    /// Puts the table in place, or removes it where there are no pods to masquerade.
    pub fn apply(&self) -> Result<(), Error> {
        match nft(&["-f", "-"], &self.rules()) {
            // Without nft there is no table of ours that it has made.
            Err(Error::Run(error))
                if self.pods.is_empty() && error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            applied => applied,
        }
    }

    /// Whether the kernel has the table, or rightly has none. Someone may have flushed it.
    pub fn is_in_place(&self) -> bool {
        nft(&["list", "table", "ip", TABLE], "").is_ok() != self.pods.is_empty()
    }

    fn rules(&self) -> String {
        // Without the first line there might be nothing to delete, which is an error.
        let clear = format!("table ip {TABLE}\ndelete table ip {TABLE}\n");
        if self.pods.is_empty() {
            return clear;
        }
        let pods: Vec<String> = self.pods.iter().map(Ipv4Network::to_string).collect();
        let (pods, ipip0) = (pods.join(", "), ipip0::NAME);
        format!(
            "{clear}table ip {TABLE} {{
  chain postrouting {{
    comment \"pods leave the cluster with the node's address\"
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {{ {pods} }} ip daddr != {{ {pods} }} oifname != \"{ipip0}\" masquerade fully-random
  }}
}}
"
        )
    }
}

fn nft(args: &[&str], input: &str) -> Result<(), Error> {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // Its answer tells more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.map_err(Error::Run)?,
        }
    }
    let output = child.wait_with_output().map_err(Error::Run)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::Refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}
