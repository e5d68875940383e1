//! One reconciliation: observe the host, compute the desired state, write the difference.

use crate::{
    cni_install::withdraw_after_boot,
    config::Config,
    host::facts::{Facts, Ipip0},
    log_limit::LogLimit,
    nodes::{
        inventory::{Inventory, Node},
        path, seen,
    },
    paths::{peers::Offer, uses::Uses},
    probe_key::{PrivateKey, Secrets},
    problems::{Problem, Reason},
    reconcile::{
        Error,
        apply::Writer,
        candidates, claims,
        datapath_settings::DatapathSettings,
        desired::{self, Desired, Input},
        foreign_routes,
        host_route::HostRoute,
        host_setup::HostSetup,
        local_use, mtu,
        peer_ids::{self, Assignment},
        plan::{self, Plan, Step},
        sources,
    },
    repairs::{self, Repair},
    traffic::Sample,
};
use ipip_abi::{
    ABI_VERSION, Candidate, Counter, Encapsulation, PeerInfo, PeerState, UnknownCode,
    probe::candidate_index,
};
use ipip_datapath::{LoadOutcome, Maps, Pins, ProbeTarget, SentReader, load, take_over};
use ipip_netlink::{Changes, Netlink};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Instant,
};
use tracing::{debug, info, warn};

/// Keeps this node in its desired state.
pub struct Reconciler {
    config: Config,
    pins: Pins,
    /// The other ABI version whose programs stay attached until the maps of this one are filled.
    predecessor: Option<u32>,
    settings: DatapathSettings,
    /// As it was stated.
    inventory: Option<Arc<Inventory>>,
    /// As this node sees it, with what probes have shown.
    seen: Option<Arc<Inventory>>,
    /// What probes have shown.
    uses: Uses,
    facts: Facts,
    /// The secrets of this node's probes.
    secrets: Secrets,
    /// Whether the tunnel interface is there.
    has_ipip0: bool,
    /// Maps and routes.
    writer: Writer,
    /// Everything else on the host.
    host: HostSetup,
    /// What the last reconciliation found on the way to the desired state.
    problems: Vec<Problem>,
    /// What the inventory leaves out of other nodes: the name of each node, and a text.
    left_out: BTreeSet<(String, String)>,
    /// The lines that were logged about each peer.
    log_limit: LogLimit,
    /// What the last reconciliation wanted.
    desired: Desired,
    /// The addresses that a machine of a local network could have; none if they must be found again.
    lan_candidates: Option<BTreeSet<(u32, Ipv4Addr)>>,
    /// The number of new MACs that pods had stated at the last reconciliation.
    learned: u64,
    /// Whether the last full reconciliation succeeded, with the inventory of now.
    is_complete: bool,
    /// Whether [`Self::new_offers`] may return others than before.
    has_new_offers: bool,
}

/// The result of a reconciliation without errors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The node is in its desired state.
    Complete,
    /// New peers wait for indexes that this reconciliation has freed: reconcile again.
    Again,
}

impl Reconciler {
    /// Loads the datapath, or adopts the pinned one. Does not change other settings of the host. `key` is the key of this
    /// node's probes, if it has one.
    pub fn start(config: Config, key: Option<PrivateKey>) -> Result<Self, Error> {
        let pins = Pins::new(&config.pin_root);
        if let Err(error) = withdraw_after_boot(&config) {
            warn!(%error, "pods are started before the datapath is ready: they fail and are tried again");
        }
        let outcome = load(&pins, config.attach)?;
        info!(pins = %pins.version_dir().display(), ?outcome, "datapath loaded");
        let predecessor = match outcome {
            LoadOutcome::Waits { current } => Some(current),
            _ => None,
        };
        Ok(Self {
            predecessor,
            settings: DatapathSettings::from(&config),
            inventory: None,
            seen: None,
            uses: Uses::new(),
            facts: Facts::default(),
            secrets: Secrets::new(&config.node_name, key),
            has_ipip0: false,
            writer: Writer::open(&pins, Netlink::open()?)?,
            host: HostSetup::open(&config, &pins)?,
            problems: Vec::new(),
            left_out: BTreeSet::new(),
            log_limit: LogLimit::default(),
            desired: Desired::default(),
            lan_candidates: None,
            learned: 0,
            is_complete: false,
            has_new_offers: false,
            config,
            pins,
        })
    }

    /// Replaces the inventory. The next [`Self::reconcile`] uses it.
    pub fn set_inventory(&mut self, inventory: Inventory) {
        let now = Instant::now();
        if self.log_limit.allows("the inventory", now) {
            info!(nodes = inventory.nodes.len(), "new inventory");
        }
        let left_out = claims::of_others(&self.config.node_name, &inventory);
        for (node, text) in left_out.difference(&self.left_out) {
            if self.log_limit.allows(node, now) {
                warn!("left out: node {node}: {text}");
            }
        }
        for (node, text) in self.left_out.difference(&left_out) {
            if self.log_limit.allows(node, now) {
                info!("no longer left out: node {node}: {text}");
            }
        }
        let peers = inventory.nodes.iter();
        let peers = peers.filter_map(|node| Some((&*node.name, node.probe_key?)));
        self.secrets.set_peers(peers);
        self.warn_of_own_key(&inventory);
        self.left_out = left_out;
        self.inventory = Some(Arc::new(inventory));
        self.has_new_offers = true;
        self.see();
    }

    /// Replaces what probes have shown. The next [`Self::reconcile`] uses it.
    pub fn set_uses(&mut self, uses: Uses) {
        self.uses = uses;
        self.see();
    }

    /// Sees the inventory with what probes have shown.
    fn see(&mut self) {
        self.is_complete = false;
        self.lan_candidates = None;
        self.seen = self.stated().map(|(inventory, own)| {
            let default = self.settings.encapsulation;
            let can_probe = |peer: &Node| {
                let is_direct = path::encapsulation(own, peer, default) == Encapsulation::Direct;
                !is_direct && candidates::secret(peer, &self.secrets).is_some()
            };
            Arc::new(seen::from(own, inventory, &self.uses, can_probe))
        });
    }

    /// The peers that can be probed, by their indexes, as of the last reconciliation. None if nothing of that has changed since the
    /// last call: there are thousands, and reconciliations come whenever something changes on the host.
    pub fn new_offers(&mut self) -> Option<BTreeMap<u16, Offer>> {
        if !std::mem::take(&mut self.has_new_offers) {
            return None;
        }
        let (inventory, own) = self.stated()?;
        let actual = self.writer.actual();
        Some(candidates::offers(
            own,
            inventory,
            &self.writer.ids(),
            &actual.candidates,
            &actual.probe_secrets,
        ))
    }

    /// The addresses by which other nodes know this one.
    pub fn own_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let own = self.stated().map(|(_, own)| own).into_iter();
        own.flat_map(|it| it.internal_ips.iter().chain(&it.public_endpoint))
            .copied()
            .collect()
    }

    /// The inventory as it was stated, and this node in it.
    fn stated(&self) -> Option<(&Inventory, &Node)> {
        let inventory = self.inventory.as_deref()?;
        Some((inventory, inventory.node(&self.config.node_name)?))
    }

    /// This node and the inventory, as this node sees them with what probes have shown.
    pub fn seen(&self) -> Option<(&Node, &Inventory)> {
        let seen = self.seen.as_deref()?;
        Some((seen.node(&self.config.node_name)?, seen))
    }

    /// What a probe of a peer's candidate needs of the maps, as they were written; zero if there is nothing.
    pub fn probe_target(&self, peer: u16, candidate: Candidate) -> ProbeTarget {
        let actual = self.writer.actual();
        let path = candidate_index(peer, candidate as u8);
        let secret = actual.probe_secrets.get(&peer).copied();
        ProbeTarget {
            secret: secret.unwrap_or_default(),
            path: actual.candidates.get(&path).copied().unwrap_or_default(),
        }
    }

    /// The maps of the datapath.
    pub fn maps(&self) -> &Maps {
        self.writer.maps()
    }

    /// An inventory file can have the key of an earlier boot.
    fn warn_of_own_key(&mut self, inventory: &Inventory) {
        let name = &self.config.node_name;
        let stated = inventory.node(name).and_then(|own| own.probe_key);
        let is_file = !inventory.is_published;
        if let (true, Some(stated), Some(public)) = (is_file, stated, self.secrets.public())
            && stated != public
            && self.log_limit.allows(name, Instant::now())
        {
            warn!(%stated, %public, "peers drop the probes of this node: the inventory has another probeKey for it; remedy: write the public one");
        }
    }

    /// The number of nodes that are written into the maps.
    pub fn peers(&self) -> u32 {
        self.writer.actual().peer_info.len() as u32
    }

    /// Whether an inventory has been set.
    pub fn has_inventory(&self) -> bool {
        self.inventory.is_some()
    }

    /// The netlink port through which this agent changes routes.
    pub fn port(&self) -> Result<u32, Error> {
        Ok(self.writer.port()?)
    }

    /// What an operator should correct, as of the last reconciliation; its errors are not included.
    pub fn problems(&self) -> Vec<Problem> {
        [&self.problems[..], &self.host.problems()].concat()
    }

    /// The MTU of new pods in bytes, as the CNI plugin reads it from the maps.
    pub fn pod_mtu(&self) -> u32 {
        self.writer.actual().config.pod_mtu
    }

    /// Brings the node to its desired state. Observes again only the state that `changes` names.
    ///
    /// # Errors
    /// One error for each part that failed. The other parts are done; the next reconciliation tries the failed ones
    /// again.
    pub fn reconcile(&mut self, changes: Changes) -> Result<Outcome, Vec<Error>> {
        let Some(inventory) = self.seen.clone() else {
            return Ok(Outcome::Complete);
        };
        // Node sources refuse an inventory without this node.
        let Some(own) = inventory.node(&self.config.node_name) else {
            return Ok(Outcome::Complete);
        };
        // Before pods are examined, so that none that states a new one meanwhile is missed.
        self.learned = self.learned_macs();
        let facts = self
            .host
            .observe(own, &inventory, self.settings.encapsulation, changes);
        let facts = facts.map_err(|error| vec![error])?;
        let is_settled = self.is_complete && facts == self.facts;
        // The kernel reports each confirmation of a neighbour. Nearly all leave every next hop as it is.
        if is_settled && changes.only_neighbours() {
            let errors = self.host.ensure_pods(changes, self.learned);
            return none_of(errors).map(|()| Outcome::Complete);
        }
        self.is_complete = false;
        if !is_settled {
            self.lan_candidates = None;
            self.facts = facts;
        }
        let mut errors = Vec::new();
        let ipip0 = match self.prepare(own, changes, &mut errors) {
            Ok(ipip0) => ipip0,
            Err(error) => {
                errors.push(error);
                return Err(errors);
            }
        };
        errors.extend(self.facts.no_uplinks().map(Error::from));
        // Errors of pods do not keep new pods from the node, so they do not keep the CNI configuration from it.
        let mut errors_of_pods = self.ensure_programs(changes, &mut errors);

        // There are thousands of peers, and reconciliations come at each resync and whenever something changes on the host.
        let is_same = is_settled && !changes.may_be_of_routes() && self.desired.ipip0() == ipip0;
        let (is_written, outcome) = match is_same {
            true => (true, Outcome::Complete),
            false => self.write_difference(own, &inventory, ipip0, &mut errors),
        };
        if is_written {
            let vouched = self.writer.vouch_for_next_hops();
            errors.extend(vouched.map_err(Error::from).err());
        }
        if is_written
            && self.has_ipip0
            && outcome == Outcome::Complete
            && self.predecessor.is_some()
        {
            match self.take_over() {
                Ok(()) => errors_of_pods = self.ensure_programs(changes, &mut errors),
                Err(error) => errors.push(error),
            }
        }

        let recheck = changes.lost;
        let lacks_pod_cidrs = claims::lacks_pod_cidrs(own, &inventory);
        // Existing pods keep their rules.
        if !lacks_pod_cidrs {
            errors.extend(self.host.ensure_rules(
                &self.config,
                (own, &inventory),
                &self.facts,
                &self.desired,
                recheck || changes.ruleset,
            ));
        }
        self.host.ensure_fou(&self.config, &self.desired, recheck);
        if !errors.is_empty() {
            errors.extend(errors_of_pods);
            return Err(errors);
        }
        // Last, because runtimes add pods as soon as they find the network list.
        if !lacks_pod_cidrs {
            self.host
                .ensure_cni(&self.config, own)
                .map_err(|error| vec![error])?;
        }
        none_of(errors_of_pods)?;
        self.is_complete = outcome == Outcome::Complete;
        Ok(outcome)
    }

    /// Confirms the next hops of the peers to which packets went since the last call. The datapath bypasses the
    /// neighbour table, so the kernel does not know that these entries are in use.
    pub fn confirm_next_hops(&mut self) {
        let peers = &self.writer.actual().peers;
        let sent = self.writer.maps().sent.take(SentReader::NextHops);
        let used: BTreeSet<_> = sent
            .iter()
            .filter_map(|id| {
                let hop = self.facts.hops.get(&peers.get(id)?.underlay.into())?;
                Some((hop.uplink, hop.next_hop))
            })
            .collect();
        self.host.confirm(used);
    }

    /// The realm of this node, and the counters of each peer; `None` before there is an inventory.
    pub fn traffic(&self) -> Result<Option<(&str, Vec<Sample<'_>>)>, Error> {
        let Some((inventory, own)) = self.stated() else {
            return Ok(None);
        };
        let ids = self.writer.ids();
        let last = ids.values().max().copied().unwrap_or_default();
        let traffic = self.writer.maps().traffic_up_to(last)?;
        let samples = inventory.nodes.iter().filter_map(|node| {
            let peer = *ids.get(&node.name)?;
            Some(Sample {
                node: &node.name,
                realm: &node.realm,
                peer,
                counted: traffic[usize::from(peer)].bytes,
            })
        });
        Ok(Some((&own.realm, samples.collect())))
    }

    /// Asks the local networks for machines that have an address of a remote node. Returns whether the answers have
    /// changed; the next [`Self::reconcile`] reports them.
    pub fn probe_lan(&mut self, now: Instant) -> Result<bool, Error> {
        if self.lan_candidates.is_none() {
            self.lan_candidates = self
                .seen()
                .map(|(own, seen)| local_use::lan_candidates(own, seen, &self.facts));
        }
        match &self.lan_candidates {
            Some(candidates) => self.host.probe_lan(candidates, &self.facts.gateways, now),
            None => Ok(false),
        }
    }

    /// The InternalIPs of other nodes that a machine in this node's own network has, too.
    pub fn lan_conflicts(&self) -> BTreeSet<Ipv4Addr> {
        self.facts.lan_hosts.keys().copied().collect()
    }

    /// Sets up forwarding and `ipip0`, and reads maps and routes if they may have changed.
    /// Appends failures that do not matter for the rest to `errors`.
    fn prepare(
        &mut self,
        own: &Node,
        changes: Changes,
        errors: &mut Vec<Error>,
    ) -> Result<Ipip0, Error> {
        let ipip0 = self.host.ensure_ipip0(own, &self.facts, errors);
        self.has_ipip0 = ipip0.is_ok();
        // While there is none, for example because another program has an interface of this name, pods and peers are
        // followed as before, and `CONFIG` keeps the last one.
        let config = self.writer.actual().config;
        let ipip0 = ipip0.unwrap_or_else(|error| {
            errors.push(error);
            Ipip0 {
                index: config.ipip0_ifindex,
                mac: config.ipip0_mac,
            }
        });
        if changes.tables {
            self.writer.read_maps()?;
        }
        if changes.may_be_of_routes() {
            self.writer.read_routes()?;
        }
        Ok(ipip0)
    }

    /// Attaches missing programs, and returns the errors of pods. Does nothing while the programs of another version are
    /// attached.
    fn ensure_programs(&mut self, changes: Changes, errors: &mut Vec<Error>) -> Vec<Error> {
        if self.predecessor.is_some() {
            return Vec::new();
        }
        errors.extend(
            self.host
                .ensure_programs(&self.config, &self.facts, changes),
        );
        self.host.ensure_pods(changes, self.learned)
    }

    /// Replaces the programs of another ABI version. The maps are filled.
    fn take_over(&mut self) -> Result<(), Error> {
        take_over(&self.pins, self.config.attach)?;
        if let Some(version) = self.predecessor.take() {
            info!(
                from = version,
                to = ABI_VERSION,
                "the datapath of another ABI version is replaced"
            );
        }
        Ok(())
    }

    /// Computes the desired state and writes how it differs from the actual one. Appends failures to `errors`. Returns whether
    /// there were none, and the outcome of the reconciliation.
    fn write_difference(
        &mut self,
        own: &Node,
        inventory: &Inventory,
        ipip0: Ipip0,
        errors: &mut Vec<Error>,
    ) -> (bool, Outcome) {
        let (desired, outcome) = self.desired(own, inventory, ipip0);
        let plan = plan::diff(&desired, self.writer.actual());
        self.has_new_offers |= plan.steps.iter().any(Step::is_of_probes);
        self.problems = self.find_problems(own, inventory, &desired, &plan);
        let is_written = self.write(&plan.steps, errors);
        let is_news = is_written && !plan.steps.is_empty();
        if is_news && self.log_limit.allows("maps and routes", Instant::now()) {
            info!(
                steps = plan.steps.len(),
                peers = desired.peers.len(),
                "maps and routes are in sync"
            );
        }
        self.desired = desired;
        (is_written, outcome)
    }

    /// Computes the desired state, and the outcome of the reconciliation that writes it.
    fn desired(&self, own: &Node, inventory: &Inventory, ipip0: Ipip0) -> (Desired, Outcome) {
        let peers = inventory.nodes.iter().map(|node| node.name.as_str());
        let peers = peers.filter(|name| *name != own.name);
        let Assignment { ids, waiting } = peer_ids::assign(&self.writer.ids(), peers);
        let desired = desired::compute(&Input {
            own,
            inventory,
            settings: &self.settings,
            facts: &self.facts,
            ipip0,
            secrets: &self.secrets,
            uses: &self.uses,
            ids: &ids,
        });
        let outcome = if waiting.is_empty() {
            Outcome::Complete
        } else {
            Outcome::Again
        };
        (desired, outcome)
    }

    /// What an operator should correct in the inventory, the settings and the routes.
    fn find_problems(
        &self,
        own: &Node,
        inventory: &Inventory,
        desired: &Desired,
        plan: &Plan,
    ) -> Vec<Problem> {
        let mtu = mtu::check(&self.settings, inventory, &self.facts).err();
        let mtu = mtu.map(|it| Problem::new(Reason::MtuDoesNotFit, it));
        // What operators have stated, and read.
        let stated = self.inventory.as_deref().unwrap_or(inventory);
        let mut problems = claims::problems(stated.node(&own.name).unwrap_or(own), stated);
        problems.extend(foreign_routes::problems(&plan.conflicts));
        problems.extend(local_use::problems(own, inventory, &self.facts));
        problems.extend(mtu);
        problems.extend(outside_of_pool(&self.config, own));
        problems.extend(sources::problems(own, desired.peers.values(), &self.facts));
        problems
    }

    /// What must be examined again now, although the kernel has reported no change: a pod may be in the middle of ADD, or
    /// has stated a new MAC. `None` if nothing must.
    pub fn due(&self) -> Option<Changes> {
        if self.host.wait_for_pods() {
            return Some(Changes::default());
        }
        (self.learned != self.learned_macs()).then_some(Changes {
            neighbours: true,
            ..Changes::default()
        })
    }

    /// The number of new MACs that pods have stated.
    fn learned_macs(&self) -> u64 {
        match self.writer.maps().tally_counter(Counter::PodMacLearned) {
            Ok(tally) => tally.packets,
            Err(error) => {
                debug!(%error, "neighbour entries of pods follow new MACs at the next resync");
                0
            }
        }
    }

    /// Writes `steps` and appends failures to `errors`. Returns whether there were none.
    fn write(&mut self, steps: &[Step], errors: &mut Vec<Error>) -> bool {
        let earlier = errors.len();
        let mut repaired = Vec::new();
        for step in steps {
            // After a failed step an entry may still refer to the peer, so its index must not go to another peer.
            if errors.len() > earlier && step.frees_an_index() {
                continue;
            }
            let leads_into_ipip0 =
                matches!(step, Step::SetHostRoute(_, HostRoute::Interface { .. }));
            if leads_into_ipip0 && !self.has_ipip0 {
                continue;
            }
            self.log_peer(step);
            match self.writer.apply(step) {
                Ok(()) => repaired.extend(self.repaired(step)),
                Err(error) => errors.push(error.into()),
            }
        }
        if !repaired.is_empty() {
            repairs::record(
                Repair::Route,
                format!("the routes to {}", repaired.join(", ")),
            );
        }
        errors.len() == earlier
    }

    /// The destination of a host route that was there, and is set again.
    fn repaired(&self, step: &Step) -> Option<String> {
        match step {
            Step::SetHostRoute(key, route) if self.desired.host_routes.get(key) == Some(route) => {
                Some(key.destination.to_string())
            }
            _ => None,
        }
    }

    /// Logs a step that makes a peer reachable or unreachable.
    fn log_peer(&mut self, step: &Step) {
        let Step::SetPeerInfo(id, info) = step else {
            return;
        };
        let before = self.writer.actual().peer_info.get(id);
        let (state, peer) = (state_of(info), info.name());
        let subject = if info.name_len == 0 {
            before.map(PeerInfo::name)
        } else {
            Some(peer)
        };
        if !subject.is_none_or(|it| self.log_limit.allows(it, Instant::now())) {
            return;
        }
        match (before, state) {
            _ if *id == 0 => {}
            (Some(before), _) if info.name_len == 0 => info!(peer = before.name(), "peer left"),
            (_, Ok(PeerState::Reachable)) => info!(peer, "peer is reachable"),
            (_, Ok(state)) => warn!(peer, why = state.text(), "peer is unreachable"),
            (_, Err(UnknownCode(code))) => warn!(peer, code, "peer is in an unknown state"),
        }
    }
}

fn none_of(errors: Vec<Error>) -> Result<(), Vec<Error>> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// A problem for each pod CIDR that the node keeps although the pool no longer has it.
fn outside_of_pool(config: &Config, own: &Node) -> Vec<Problem> {
    let Some(pool) = config.pod_pool() else {
        return Vec::new();
    };
    let outside = own.pod_cidrs.iter().filter(|it| !pool.holds(it));
    let problem = |network| {
        let text = format!(
            "podCIDRs: {network} is not in clusterPodCIDRs ({pool}) and stays in use, because pods have its addresses; remedy: drain the node, then `kubectl delete ipipnode {}` gives it a block of the pool",
            own.name
        );
        Problem::new(Reason::PodCidr, text)
    };
    outside.map(problem).collect()
}

fn state_of(info: &PeerInfo) -> Result<PeerState, UnknownCode> {
    PeerState::try_from(info.state)
}
