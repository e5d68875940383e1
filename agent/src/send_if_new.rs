//! Sends a value on a watch channel only if it differs from the last one, so that receivers wake up only for changes.

use tokio::sync::watch::Sender;

/// Sends `value` if it is new. Returns whether it is.
pub fn send_if_new<T: PartialEq>(sender: &Sender<T>, value: T) -> bool {
    sender.send_if_modified(|before| {
        let is_new = *before != value;
        *before = value;
        is_new
    })
}
