//! The IPv4 addresses of the API server, which the agent must reach without the tunnel.

use crate::send_if_new::send_if_new;
use std::{collections::BTreeSet, net::IpAddr, net::Ipv4Addr, time::Duration};
use tokio::{net::lookup_host, sync::watch, time::sleep};

/// Time between two look-ups of the name.
const INTERVAL: Duration = Duration::from_secs(30);

/// Looks `host` up now and again, and sends the addresses when they differ, until the receiver is dropped. If the
/// look-up fails, the last addresses stay.
pub async fn follow(host: String, addresses: watch::Sender<BTreeSet<Ipv4Addr>>) {
    loop {
        if let Ok(found) = lookup_host((host.as_str(), 0)).await {
            let ipv4 = found.filter_map(|it| match it.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            });
            let ipv4: BTreeSet<Ipv4Addr> = ipv4.collect();
            send_if_new(&addresses, ipv4);
        }
        tokio::select! {
            () = addresses.closed() => return,
            () = sleep(INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_its_own_and_the_task_ends_with_its_receiver() {
        let (sender, mut receiver) = watch::channel(BTreeSet::new());
        let task = tokio::spawn(follow("203.0.113.11".into(), sender));
        receiver.changed().await.unwrap();
        let expected = BTreeSet::from([Ipv4Addr::new(203, 0, 113, 11)]);
        assert_eq!(*receiver.borrow(), expected);
        drop(receiver);
        task.await.unwrap();
    }
}
