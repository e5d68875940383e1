//! The errors of the plugin, and the error object that the runtime gets.

use crate::version::{self, Version};
use ipip_datapath::ErrorList;
use serde_json::{Value, json};
use std::{io, net::Ipv4Addr, path::PathBuf};

const UNDECODABLE: &str = "network configuration cannot be decoded";

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Version(#[from] version::Error),
    #[error("the container's network namespace cannot be used: {0}")]
    UnknownContainer(#[source] ipip_netlink::Error),
    #[error("{}", .0.join("; "))]
    Environment(Vec<String>),
    #[error("cannot read the network configuration from stdin: {0}")]
    Input(#[source] io::Error),
    #[error("the network configuration cannot be decoded: {0}")]
    Decode(#[source] serde_json::Error),
    #[error("{field} is {value:?}: {remedy}")]
    Conf {
        field: &'static str,
        value: String,
        remedy: &'static str,
    },
    #[error(
        "mtu is {mtu}, but the tunnel of this node carries {most}: leave mtu out, or use at most {most}"
    )]
    Mtu { mtu: u32, most: u32 },
    #[error(
        "prevResult is missing: CHECK compares the container with the result of ADD, so pass that result"
    )]
    NoPrevious,
    #[error("prevResult is invalid: {0}")]
    Previous(String),
    #[error(
        "cni.dev/valid-attachments is missing: without the list of attachments to keep, GC would remove all of them; nothing was removed"
    )]
    NoValidAttachments,
    #[error("the datapath is not ready: {0}")]
    NotReady(#[source] ipip_datapath::Error),
    #[error("the datapath pinned at {} has no settings yet: start ipip-agent, which writes them", .0.display())]
    NotConfigured(PathBuf),
    #[error("no pod can be added: {0}")]
    Unavailable(#[source] Box<Error>),
    #[error(
        "no pod can be added, and existing pods may have lost their network: {0}; start ipip-agent, which repairs this"
    )]
    Limited(String),
    #[error(
        "all {0} pod entries of the datapath are in use: delete pods, or call GC if fewer pods are running"
    )]
    Full(u32),
    #[error("cannot lock {}: {source}; make the folder writable, or set runDir to another one", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Netlink(#[from] ipip_netlink::Error),
    #[error("{0}")]
    Datapath(#[from] ipip_datapath::Error),
    #[error("cannot {action} the pod entry of {address}: {source}")]
    PodEntry {
        action: &'static str,
        address: Ipv4Addr,
        source: aya::maps::MapError,
    },
    #[error("cannot list the pod entries: {0}")]
    PodEntries(#[source] aya::maps::MapError),
    #[error(
        "interface {0} exists already: this container was added before and was not changed; call DEL first"
    )]
    AlreadyAdded(String),
    #[error("interface {0} disappeared during its setup")]
    Vanished(String),
    #[error(
        "address {address} is in use by the pod behind {holder}: the IPAM plugin assigned it twice; give each network on this node its own ipam.dataDir and range"
    )]
    AddressInUse { address: Ipv4Addr, holder: String },
    #[error(
        "no IPAM plugin {plugin} in CNI_PATH ({folders}): install it (package containernetworking-plugins)"
    )]
    IpamAbsent { plugin: String, folders: String },
    #[error(
        "the IPAM plugin {plugin} assigned {address}, but runtimeConfig.ips requests {wanted}: use an IPAM plugin that supports requested addresses, such as host-local"
    )]
    IpamOtherAddress {
        plugin: String,
        address: Ipv4Addr,
        wanted: String,
    },
    #[error("cannot use host-local's lease {}: {source}; make the folder writable", path.display())]
    Lease { path: PathBuf, source: io::Error },
    #[error("host-local did not remove its lease {}: make the folder writable", .0.display())]
    LeaseKept(PathBuf),
    #[error("cannot run the IPAM plugin {}: {source}", path.display())]
    IpamRun { path: PathBuf, source: io::Error },
    #[error("the IPAM plugin {plugin} failed: {message}")]
    IpamFailed {
        plugin: String,
        code: u64,
        message: String,
    },
    #[error("the IPAM plugin {plugin} printed an invalid answer: {reason}")]
    IpamAnswer { plugin: String, reason: String },
    #[error(
        "the IPAM plugin must assign exactly one IPv4 address that is valid for a pod, but it assigned {0}: correct ipam.ranges"
    )]
    IpamAddress(String),
    #[error("{}", .0.join("; "))]
    Check(Vec<String>),
    #[error("{cause}; the rollback failed too: {errors}")]
    Undo {
        cause: Box<Error>,
        errors: ErrorList<Error>,
    },
    #[error(transparent)]
    Several(#[from] ErrorList<Error>),
}

impl Error {
    /// The result of several steps, with the errors of those that failed.
    pub fn all(errors: Vec<Self>) -> Result<(), Self> {
        ErrorList(errors).into_result()
    }

    /// The error code: numbers below 100 are from the CNI specification, the others are this
    /// plugin's own.
    fn code(&self) -> u64 {
        match self {
            Self::Version(version::Error::Decode(_)) => 6,
            Self::Version(_) => 1,
            Self::UnknownContainer(_) => 3,
            Self::Environment(_) => 4,
            Self::Input(_) | Self::Lock { .. } => 5,
            Self::Decode(_) | Self::Previous(_) => 6,
            Self::Conf { .. }
            | Self::Mtu { .. }
            | Self::NoPrevious
            | Self::NoValidAttachments
            | Self::IpamAbsent { .. } => 7,
            Self::NotReady(_) | Self::NotConfigured(_) => 11,
            Self::Unavailable(_) => 50,
            Self::Limited(_) => 51,
            // The code of a delegated plugin is returned unchanged.
            Self::IpamFailed { code, .. } => *code,
            Self::Undo { cause, .. } => cause.code(),
            Self::Netlink(_) | Self::Vanished(_) => 100,
            Self::Datapath(_) | Self::PodEntry { .. } | Self::PodEntries(_) | Self::Full(_) => 101,
            Self::IpamRun { .. }
            | Self::IpamAnswer { .. }
            | Self::IpamAddress(_)
            | Self::IpamOtherAddress { .. }
            | Self::Lease { .. }
            | Self::LeaseKept(_) => 102,
            Self::AlreadyAdded(_) | Self::AddressInUse { .. } => 103,
            Self::Check(_) => 104,
            Self::Several(_) => 105,
        }
    }

    /// The short message that goes with the code.
    fn headline(&self) -> &'static str {
        match self {
            Self::Version(version::Error::Decode(_)) => UNDECODABLE,
            Self::Version(_) => "incompatible CNI version",
            Self::Lock { .. } => "cannot take the lock",
            Self::UnknownContainer(_) => "unknown container",
            Self::Environment(_) => "invalid environment variables",
            Self::Input(_) => "no network configuration",
            Self::Decode(_) | Self::Previous(_) => UNDECODABLE,
            Self::Conf { .. } | Self::Mtu { .. } | Self::NoPrevious | Self::NoValidAttachments => {
                "invalid network configuration"
            }
            Self::NotReady(_) | Self::NotConfigured(_) => "datapath not ready",
            Self::Unavailable(_) => "not available",
            Self::Limited(_) => "not available, and connectivity may be limited",
            Self::Netlink(_) | Self::Vanished(_) => "network interface could not be changed",
            Self::Datapath(_) | Self::PodEntry { .. } | Self::PodEntries(_) | Self::Full(_) => {
                "datapath failed"
            }
            Self::AlreadyAdded(_) => "container was added before",
            Self::AddressInUse { .. } => "address in use",
            Self::IpamAbsent { .. }
            | Self::IpamRun { .. }
            | Self::IpamFailed { .. }
            | Self::IpamAnswer { .. }
            | Self::IpamAddress(_)
            | Self::IpamOtherAddress { .. }
            | Self::Lease { .. }
            | Self::LeaseKept(_) => "address management failed",
            Self::Check(_) => "container differs from the result of ADD",
            Self::Undo { cause, .. } => cause.headline(),
            Self::Several(_) => "several steps failed, all others were completed",
        }
    }

    /// The error object that the CNI specification asks for on stdout.
    pub fn report(&self, version: Version) -> Value {
        json!({
            "cniVersion": version.name(),
            "code": self.code(),
            "msg": format!("ipip: {}", self.headline()),
            "details": self.to_string(),
        })
    }
}
