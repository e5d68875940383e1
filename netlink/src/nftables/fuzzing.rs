//! Reads a message of nftables in each way in which this crate does.

use super::{accepts, expressions, forward};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use std::hint::black_box;

/// Fails if a rule becomes more rules of the model than its set has elements.
pub(crate) fn read(message: NfTablesMessage) {
    match message {
        NfTablesMessage::NewChain(chain) => drop(black_box(forward::filters_forwarded(&chain))),
        NfTablesMessage::NewRule(rule) => {
            black_box(accepts::unconditional(&rule));
            for elements in [None, Some(vec![(vec![1], None); 2])] {
                let rules = forward::model(&rule, |_| Ok(elements.clone())).unwrap();
                let tests = rules.iter().map(|it| it.tests.len()).max();
                let most = expressions::expressions(&rule).len();
                assert!(matches!(rules.len(), 1 | 2) && tests <= Some(most));
            }
        }
        NfTablesMessage::NewSetElement(list) => drop(black_box(forward::listed(list))),
        _ => {}
    }
}
