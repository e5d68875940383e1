//! Names for the numbers in maps: peers, interfaces, codes, protocols.

use ipip_abi::{PeerInfo, UnknownCode};
use nix::net::if_::if_nameindex;
use std::collections::HashMap;

/// Names of peers and of the interfaces in this network namespace.
#[derive(Debug, Default)]
pub struct Names {
    peers: HashMap<u16, String>,
    interfaces: HashMap<u32, String>,
}

impl Names {
    /// Names from the used elements of `PEER_INFO`, and these interfaces by index.
    pub fn new(peers: &[(u16, PeerInfo)], interfaces: HashMap<u32, String>) -> Self {
        let peers = peers
            .iter()
            .map(|(peer, info)| (*peer, info.name().to_owned()))
            .collect();
        Self { peers, interfaces }
    }

    /// The node name of a peer, if it has one.
    pub fn peer(&self, peer: u16) -> Option<String> {
        self.peers
            .get(&peer)
            .filter(|name| !name.is_empty())
            .cloned()
    }

    /// The name of an interface of this network namespace.
    pub fn interface(&self, index: u32) -> Option<String> {
        self.interfaces.get(&index).cloned()
    }
}

/// The interfaces of this network namespace by index; empty if they cannot be listed.
pub fn interfaces() -> HashMap<u32, String> {
    let Ok(interfaces) = if_nameindex() else {
        return HashMap::new();
    };
    interfaces
        .iter()
        .map(|i| (i.index(), i.name().to_string_lossy().into_owned()))
        .collect()
}

/// The name of a code, or its number if this version does not know it.
pub fn code<C>(code: Result<C, UnknownCode>, name: impl FnOnce(C) -> &'static str) -> String {
    match code {
        Ok(code) => name(code).to_owned(),
        Err(UnknownCode(number)) => format!("unknown({number})"),
    }
}

/// The name of an IP protocol, or its number.
pub fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}
