//! Where the nodes come from.

mod file;
pub mod kubernetes;

pub use file::FileSource;

use crate::inventory::Inventory;
use std::future::Future;
use tokio::sync::mpsc::Sender;

/// What a source holds now, or why it cannot be used; then the last good inventory goes on.
pub type Update = Result<Inventory, Refusal>;

/// Why what a source holds is refused as a whole.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Tells the nodes of the cluster, now and whenever they change.
pub trait NodeSource {
    /// Sends what there is and then each change, until nobody listens any more. What is the same
    /// as before is not sent again.
    fn watch(self, updates: Sender<Update>) -> impl Future<Output = ()> + Send;
}
