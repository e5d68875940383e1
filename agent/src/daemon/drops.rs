//! Drop events, as the datapath samples them, into the log.

use ipip_abi::{DropEvent, DropReason, Hook, UnknownCode};
use ipip_datapath::Events;
use nix::net::if_::if_indextoname;
use tracing::info;

/// Logs every event that waits; the datapath has limited how many there can be.
pub fn log(events: &mut Events) {
    while let Some(event) = events.next() {
        let DropEvent {
            source,
            destination,
            source_port,
            destination_port,
            protocol,
            len,
            peer,
            ..
        } = event;
        let reason = DropReason::try_from(event.reason);
        info!(
            reason = word(reason.map(DropReason::name)),
            hook = word(Hook::try_from(event.hook).map(Hook::name)),
            interface = interface(event.ifindex),
            %source,
            source_port = u16::from_be_bytes(source_port),
            %destination,
            destination_port = u16::from_be_bytes(destination_port),
            protocol,
            len,
            peer,
            "packet dropped: {}",
            word(reason.map(DropReason::text))
        );
    }
}

fn word(name: Result<&'static str, UnknownCode>) -> &'static str {
    name.unwrap_or("unknown to this version")
}

fn interface(index: u32) -> String {
    let name = if_indextoname(index).map(|name| name.to_string_lossy().into_owned());
    // A veth may be gone before its last event is read.
    name.unwrap_or_else(|_| index.to_string())
}
