//! A path that could be used.

use ipip_abi::Candidate as Number;
use std::net::Ipv4Addr;

/// A path that could be used.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Candidate {
    /// Which of the peer's addresses, and which encapsulation.
    pub number: Number,
    /// Outer destination; without an outer header the next hop.
    pub address: Ipv4Addr,
}

/// How good a candidate is, whatever probes show of it; the lowest is the best.
pub type Rank = (bool, u8);

impl Candidate {
    /// Private before public, which clouds bill; fewer bytes of headers before more.
    pub fn rank(&self) -> Rank {
        let by_cost = match self.number {
            Number::Direct => 0,
            Number::PrivateIpip | Number::PublicIpip => 1,
            Number::PrivateUdp | Number::PublicUdp => 2,
        };
        (self.is_public(), by_cost)
    }

    /// Whether it leads through the peer's public endpoint.
    pub fn is_public(&self) -> bool {
        self.number.is_public()
    }
}
