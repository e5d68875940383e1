//! Asks the API server whether the Nodes of held objects still exist.

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    sync::{mpsc::Sender, watch::Receiver},
    time::sleep,
};
use tracing::debug;

/// Pause between two requests for each node that is held: every agent asks, so all together send 1,000 a second at most.
const PAUSE: Duration = Duration::from_millis(1);
/// Time after which all are asked for again.
const AGAIN: Duration = Duration::from_secs(30);

/// Sends the names in `held` whose Node does not exist to `gone`, until a channel is closed.
pub async fn find(nodes: Api<Node>, mut held: Receiver<BTreeSet<String>>, gone: Sender<String>) {
    loop {
        let names = held.borrow_and_update().clone();
        let pause = PAUSE * u32::try_from(names.len()).unwrap_or(u32::MAX);
        for name in &names {
            match nodes.get_metadata_opt(name).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    if gone.send(name.clone()).await.is_err() {
                        return;
                    }
                }
                Err(error) => debug!(%error, name, "cannot read a Node"),
            }
            sleep(pause).await;
        }
        tokio::select! {
            changed = held.changed() => if changed.is_err() { return },
            () = sleep(AGAIN), if !names.is_empty() => {}
        }
    }
}
