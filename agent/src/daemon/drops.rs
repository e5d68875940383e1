//! Writes the drop events that the datapath samples to the log.

use ipip_abi::{DropEvent, DropReason, Program, UnknownCode};
use ipip_datapath::{Events, interface_name};
use tracing::info;

/// Logs every waiting event. The datapath limits their rate.
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
            reason = text(reason.map(DropReason::name)),
            program = text(Program::try_from(event.program).map(Program::name)),
            interface = interface(event.ifindex),
            %source,
            source_port = u16::from_be_bytes(source_port),
            %destination,
            destination_port = u16::from_be_bytes(destination_port),
            protocol,
            len,
            peer,
            "packet dropped: {}",
            text(reason.map(DropReason::text))
        );
    }
}

fn text(known: Result<&'static str, UnknownCode>) -> &'static str {
    known.unwrap_or("unknown to this version")
}

fn interface(index: u32) -> String {
    // A veth may be deleted before its last event is read.
    interface_name(index).unwrap_or_else(|| index.to_string())
}
