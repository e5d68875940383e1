//! The settings on which the content of maps and routes depends.

use crate::config::{Config, ForeignIpip};
use ipip_abi::Encapsulation;

/// The settings on which the content of maps and routes depends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DatapathSettings {
    /// Encapsulation of paths for which no node asks for another.
    pub encapsulation: Encapsulation,
    /// UDP port of the `udp` encapsulation.
    pub udp_port: u16,
    /// MTU of new pods in bytes; `None` means the largest that fits.
    pub mtu: Option<u16>,
    /// Whether foreign packets of protocol 4 go to the host. Otherwise they are dropped.
    pub foreign_ipip_passes: bool,
    /// Drop events that one CPU may emit in a second.
    pub events_per_second: u32,
}

impl From<&Config> for DatapathSettings {
    fn from(config: &Config) -> Self {
        Self {
            encapsulation: config.encapsulation,
            udp_port: config.udp_port,
            mtu: config.mtu,
            foreign_ipip_passes: config.foreign_ipip == ForeignIpip::Pass,
            events_per_second: config.events_per_second,
        }
    }
}
