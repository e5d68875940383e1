//! What probes have shown, as the rest of the agent uses it.

use crate::paths::candidate::Candidate;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// What probes have shown of each peer that can be probed, by its name.
pub type Uses = BTreeMap<String, Use>;

/// What probes have shown of a peer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Use {
    /// The path to use; none while no candidate has proven to work.
    pub path: Option<Candidate>,
    /// The largest inner packet that passes it, in bytes.
    pub mtu: Option<u16>,
    /// The addresses at which the peer has answered: its packets may come from there.
    pub proven: BTreeSet<Ipv4Addr>,
}
