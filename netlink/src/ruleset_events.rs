//! Notifications of nftables changes.

use crate::{
    Changes, NetNs, Result,
    attributes::text,
    events::{drain, subscribe},
    socket::RECEIVE_BYTES,
};
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::libc;
use std::os::fd::{AsRawFd, RawFd};

/// Bytes of `struct nfgenmsg`, which precedes the attributes.
const HEADER_BYTES: usize = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE`.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_NAME`.
const CHAIN_NAME: u16 = 3;
/// `NFTA_CHAIN_HOOK`.
const CHAIN_HOOK: u16 = 4;
/// `NFTA_RULE_CHAIN`.
const RULE_CHAIN: u16 = 2;

/// Reports changes of watched nftables objects of one network namespace.
///
/// Other programs change rules often (kube-proxy with every Service), so everything else is ignored. The descriptor
/// becomes readable when there are events to [`drain`](RulesetEvents::drain).
pub struct RulesetEvents {
    socket: Socket,
    buffer: Vec<u8>,
    watched: &'static [Watched],
}

/// A watched table, or one chain of it with its rules.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Name of the table, of any family.
    pub table: &'static str,
    /// Name of the chain; `None` is the whole table.
    pub chain: Option<&'static str>,
}

impl RulesetEvents {
    /// Subscribes in the calling thread's network namespace. Chains with a hook and
    /// deleted tables are always reported.
    pub fn open(watched: &'static [Watched]) -> Result<Self> {
        Ok(Self {
            socket: subscribe(NETLINK_NETFILTER, &[libc::NFNLGRP_NFTABLES as u32])?,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
            watched,
        })
    }

    /// Subscribes in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs, watched: &'static [Watched]) -> Result<Self> {
        ns.run(|| Self::open(watched))?
    }

    /// Reads all pending events. Never blocks. Lost events count as a change.
    pub fn drain(&mut self) -> Result<Changes> {
        let (mut changes, watched) = (Changes::default(), self.watched);
        drain(&self.socket, &mut self.buffer, |message| {
            changes.ruleset |= message.is_none_or(|it| is_watched(it, watched));
        })?;
        Ok(changes)
    }
}

impl AsRawFd for RulesetEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

pub(crate) fn is_watched(message: &[u8], watched: &[Watched]) -> bool {
    let message = NetlinkBuffer::new(message);
    let attributes = message.payload().get(HEADER_BYTES..).unwrap_or_default();
    let has = |kind| text(attributes, kind).is_some();
    let is = |kind, name: &str| text(attributes, kind).as_deref() == Some(name);
    let [_, kind] = message.message_type().to_be_bytes();
    let chain = match kind.into() {
        // Chains with a hook may go with it.
        libc::NFT_MSG_DELTABLE => return true,
        libc::NFT_MSG_NEWTABLE => None,
        libc::NFT_MSG_NEWCHAIN | libc::NFT_MSG_DELCHAIN if has(CHAIN_HOOK) => return true,
        libc::NFT_MSG_NEWCHAIN | libc::NFT_MSG_DELCHAIN => Some(CHAIN_NAME),
        libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => Some(RULE_CHAIN),
        _ => return false,
    };
    watched.iter().any(|it| {
        let same_chain = match (it.chain, chain) {
            (Some(name), Some(kind)) => is(kind, name),
            // A table goes with all its chains.
            _ => true,
        };
        is(TABLE, it.table) && same_chain
    })
}
