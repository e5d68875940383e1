//! The search for private routes between realms: some nodes of a realm are probed at their private addresses, after a time other
//! ones; if one answers, all are.

use crate::paths::peers::Offer;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Nodes of a realm that are probed.
const SAMPLES: usize = 3;
/// Between two probes of each candidate of such a node; longer if there are many realms, so that all together send less than
/// so many a second.
const INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 5;
/// Candidates of a node.
const CANDIDATES: u32 = 4;

/// The nodes of each other realm.
#[derive(Debug, Default)]
pub struct Search {
    groups: HashMap<String, Group>,
    realms: HashMap<u16, String>,
    /// How often the samples were replaced by other ones.
    turn: usize,
}

#[derive(Debug, Default)]
struct Group {
    /// The indexes of its nodes, in an order that does not depend on them.
    nodes: Vec<u16>,
    /// Whether one has answered.
    is_found: bool,
}

impl Search {
    /// Replaces the peers.
    pub fn set_peers(&mut self, offers: &BTreeMap<u16, Offer>) {
        let with_realm = offers.iter();
        let with_realm =
            with_realm.filter_map(|(id, it)| Some((*id, it.other_realm.as_ref()?, &it.name)));
        let mut groups: HashMap<String, Vec<(u64, u16)>> = HashMap::new();
        self.realms.clear();
        for (id, realm, name) in with_realm {
            self.realms.insert(id, realm.clone());
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            let group = groups.entry(realm.clone()).or_default();
            group.push((hasher.finish(), id));
        }
        let before = std::mem::take(&mut self.groups);
        let with_order = groups.into_iter().map(|(realm, mut nodes)| {
            nodes.sort_unstable();
            let is_found = before.get(&realm).is_some_and(|it| it.is_found);
            let nodes = nodes.into_iter().map(|(_, id)| id).collect();
            (realm, Group { nodes, is_found })
        });
        self.groups = with_order.collect();
    }

    /// Whether a node of another realm is probed at its private address.
    pub fn includes(&self, id: u16) -> bool {
        self.group(id)
            .is_some_and(|it| it.is_found || it.is_sample(id, self.turn))
    }

    /// Between two probes of a candidate of this node, if it is one of those that are probed for all.
    pub fn pace(&self, id: u16) -> Option<Duration> {
        let group = self.group(id)?;
        let samples = self.groups.len() * SAMPLES;
        let interval = Duration::from_secs(1) * samples as u32 * CANDIDATES / PROBES;
        group
            .is_sample(id, self.turn)
            .then_some(INTERVAL.max(interval))
    }

    /// Takes the next nodes as samples: those until now may be down, or be the only ones without a private route. Returns the nodes
    /// for which [`Self::includes`] has changed.
    pub fn take_turn(&mut self) -> Vec<u16> {
        let before: Vec<u16> = self.samples().collect();
        self.turn += 1;
        let mut changed: Vec<u16> = self.samples().collect();
        changed.extend(before);
        changed
    }

    /// The samples of realms in which none has answered.
    fn samples(&self) -> impl Iterator<Item = u16> {
        let searched = self.groups.values().filter(|it| !it.is_found);
        searched.flat_map(|it| {
            let nodes = it.nodes.iter().copied();
            nodes.filter(|id| it.is_sample(*id, self.turn))
        })
    }

    /// Records that a node has answered at its private address. Whether this is new for its realm.
    pub fn found(&mut self, id: u16) -> bool {
        let realm = self.realms.get(&id);
        let group = realm.and_then(|it| self.groups.get_mut(it));
        group.is_some_and(|it| !std::mem::replace(&mut it.is_found, true))
    }

    /// The nodes of the realm that has this one.
    pub fn group_of(&self, id: u16) -> Vec<u16> {
        self.group(id)
            .map(|it| it.nodes.clone())
            .unwrap_or_default()
    }

    fn group(&self, id: u16) -> Option<&Group> {
        self.groups.get(self.realms.get(&id)?)
    }
}

impl Group {
    fn is_sample(&self, id: u16, turn: usize) -> bool {
        let first = turn * SAMPLES;
        let mut samples = (first..first + SAMPLES).map(|it| self.nodes[it % self.nodes.len()]);
        samples.any(|it| it == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn offers(realms: &[Option<&str>]) -> BTreeMap<u16, Offer> {
        let offers = realms.iter().zip(1_u16..).map(|(realm, id)| {
            let offer = Offer {
                name: format!("n{id}"),
                identity: [1; 8],
                candidates: BTreeMap::new(),
                other_realm: realm.map(str::to_owned),
            };
            (id, offer)
        });
        offers.collect()
    }

    #[test]
    fn some_nodes_of_each_realm_are_probed_until_one_answers() {
        let mut search = Search::default();
        search.set_peers(&offers(
            &[vec![Some("b"); 10], vec![Some("c"); 2], vec![None]].concat(),
        ));
        let of_b: Vec<u16> = (1..=10).filter(|it| search.includes(*it)).collect();
        assert_eq!(of_b.len(), SAMPLES);
        assert!(search.includes(11) && search.includes(12) && !search.includes(13));

        assert!(search.found(of_b[0]) && !search.found(of_b[1]) && !search.found(13));
        assert!((1..=10).all(|it| search.includes(it)));
        assert_eq!(search.group_of(1).len(), 10);
        // It stays found when nodes come and go.
        search.set_peers(&offers(&[Some("b"); 5]));
        assert!((1..=5).all(|it| search.includes(it)));
    }

    #[test]
    fn each_node_is_probed_at_some_time_and_no_more_than_the_samples_at_once() {
        let mut search = Search::default();
        search.set_peers(&offers(&[Some("b"); 10]));
        let included = |it: &Search| (1..=10).filter(|id| it.includes(*id)).collect::<Vec<u16>>();
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            let before = included(&search);
            assert!(before.len() <= SAMPLES);
            seen.extend(before.clone());
            let changed = search.take_turn();
            for id in (1..=10).filter(|id| before.contains(id) != search.includes(*id)) {
                assert!(changed.contains(&id));
            }
        }
        assert_eq!(seen.len(), 10);
    }

    #[test]
    fn many_realms_are_searched_more_rarely() {
        let pace = |realms: usize| {
            let names: Vec<String> = (0..realms).map(|it| it.to_string()).collect();
            let realms: Vec<_> = names.iter().map(|it| Some(it.as_str())).collect();
            let mut search = Search::default();
            search.set_peers(&offers(&realms));
            search.pace(1)
        };
        assert_eq!(pace(1), Some(INTERVAL));
        assert_eq!(pace(100), Some(Duration::from_secs(240)));
    }
}
