//! Assigns each peer its index in `PEERS`. A peer keeps its index while it is in the inventory. Pure.

use ipip_abi::{PeerInfo, maps};
use std::collections::{BTreeMap, BTreeSet};

/// The index of each peer by its name. Index 0 is this node.
pub type Ids = BTreeMap<String, u16>;

/// The indexes of the peers, and the peers that wait for one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Assignment {
    /// The indexes.
    pub ids: Ids,
    /// Peers without an index, because the only unused indexes belong to peers that are being removed. They get one
    /// in the next reconciliation, when no map entry refers to the old peer any more.
    pub waiting: BTreeSet<String>,
}

/// Reads the indexes from the entries of the pinned `PEER_INFO`.
pub fn adopt<'a>(infos: impl IntoIterator<Item = (u16, &'a PeerInfo)>) -> Ids {
    infos
        .into_iter()
        .filter(|(id, info)| *id != 0 && info.name_len != 0)
        .map(|(id, info)| (info.name().to_owned(), id))
        .collect()
}

/// Gives each of `names` its index in `previous`. A new name gets an index that no peer in `previous` has.
pub fn assign<'a>(previous: &Ids, names: impl IntoIterator<Item = &'a str>) -> Assignment {
    let taken: BTreeSet<u16> = previous.values().copied().collect();
    let mut free = (1..maps::MAX_PEERS as u16).filter(|id| !taken.contains(id));
    let mut assignment = Assignment::default();
    for name in names {
        match previous.get(name).copied().or_else(|| free.next()) {
            Some(id) => assignment.ids.insert(name.to_owned(), id).map(drop),
            None => assignment.waiting.insert(name.to_owned()).then_some(()),
        };
    }
    assignment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_keeps_its_index_and_a_new_peer_never_gets_the_index_of_a_leaving_one() {
        let first = assign(&Ids::new(), ["a", "b", "c"]).ids;
        let second = assign(&first, ["c", "d", "a"]).ids;
        assert_eq!(second["a"], first["a"]);
        assert_eq!(second["c"], first["c"]);
        assert_eq!(second["d"], 4);
        // The maps no longer refer to b, so its index is free.
        assert_eq!(assign(&second, ["e", "a"]).ids["e"], first["b"]);
    }

    #[test]
    fn if_only_indexes_of_leaving_peers_are_unused_a_new_peer_waits_one_round() {
        let names: Vec<String> = (1..maps::MAX_PEERS).map(|n| format!("n{n}")).collect();
        let full = assign(&Ids::new(), names.iter().map(String::as_str));
        assert_eq!(full.waiting, BTreeSet::new());
        let names = || names[1..].iter().map(String::as_str).chain(["new"]);
        let round = assign(&full.ids, names());
        assert_eq!(round.waiting, BTreeSet::from(["new".to_owned()]));
        let next = assign(&round.ids, names());
        assert_eq!(next.ids["new"], full.ids["n1"]);
    }

    #[test]
    fn indexes_are_adopted_by_name_and_index_0_is_skipped() {
        let info = |name| PeerInfo::new(name, 0, 0);
        let infos = [
            (0, info("own")),
            (1, info("a")),
            (2, info("")),
            (9, info("b")),
        ];
        let ids = adopt(infos.iter().map(|(id, info)| (*id, info)));
        assert_eq!(ids, Ids::from([("a".to_owned(), 1), ("b".to_owned(), 9)]));
    }
}
