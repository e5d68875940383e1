//! Items of the ring buffers.

use ipip_abi::{DropEvent, DropReason, Program};
use std::hint::black_box;

/// An item, of which the agent logs each field.
pub fn drop_event(item: &[u8]) {
    let event = ipip_datapath::ring_item::<DropEvent>(item);
    assert_eq!(event.is_some(), item.len() >= size_of::<DropEvent>());
    let Some(event) = event else {
        return;
    };
    black_box(format!("{} {}", event.source, event.destination));
    if let Ok(reason) = DropReason::try_from(event.reason) {
        assert_eq!(reason as u8, event.reason);
        assert!(!reason.name().is_empty() && !reason.text().is_empty());
    }
    if let Ok(program) = Program::try_from(event.program) {
        assert_eq!(program as u8, event.program);
        assert!(!program.name().is_empty());
    }
}
