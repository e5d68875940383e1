//! One pass of the pipeline: facts and inventory in, everything that differs put right.

use crate::{
    cni_install::{self, Cni},
    config::Config,
    daemon::promoter::Promoter,
    host::{
        facts::{Facts, Ipip0, Uplink},
        forwarding,
        fou::Merging,
        ipip0,
        masquerade::{self, Masquerade},
        observe::Underlay,
    },
    nodes::inventory::{Inventory, Node},
    reconcile::{
        apply::{self, Writer},
        desired::{Desired, MtuDoesNotFit, check_mtu, desired},
        peer_ids::{self, Assignment},
        plan::{Step, plan},
    },
};
use ipip_abi::{Encapsulation, NodeAddr, Peer, PeerInfo, PeerState, UnknownCode, programs};
use ipip_datapath::{Error as DatapathError, Pins, Programs, Promotion, load};
use ipip_netlink::{Changes, Netlink, Route as KernelRoute};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Instant,
};
use tracing::{debug, error, info, warn};

/// Everything that the agent keeps true.
pub struct Agent {
    config: Config,
    programs: Programs,
    netlink: Netlink,
    underlay: Underlay,
    writer: Writer,
    inventory: Option<Arc<Inventory>>,
    facts: Facts,
    /// The uplinks that have their program.
    attached: BTreeMap<u32, Uplink>,
    /// What nftables holds, as far as we know.
    masquerade: Option<Masquerade>,
    merging: Merging,
    cni: Cni,
    complaints: Complaints,
    /// Packets sent to each peer when next hops were last confirmed.
    sent: BTreeMap<u16, u64>,
    promoter: Promoter,
}

const ONLY_NEIGHBOURS: Changes = Changes {
    links: false,
    addresses: false,
    routes: false,
    neighbours: true,
    lost: false,
};

/// Why the host is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The datapath: loading, attaching.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Links, addresses, routes, neighbours.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The tunnel interface.
    #[error(transparent)]
    Ipip0(#[from] ipip0::Error),
    /// Maps and kernel routes.
    #[error(transparent)]
    Writer(#[from] apply::Error),
    /// nftables.
    #[error(transparent)]
    Masquerade(#[from] masquerade::Error),
    /// The kernel setting.
    #[error(transparent)]
    Forwarding(#[from] forwarding::Error),
    /// What container runtimes need.
    #[error(transparent)]
    Cni(#[from] cni_install::Error),
    /// An interface is not there.
    #[error(
        "uplinks: this host has no interface called {0:?}; remedy: correct `uplinks`, or leave it out to let the routes decide"
    )]
    NoUplink(String),
}

/// Whether the agent has more to do than one pass could.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pass {
    /// All is as it should be.
    Complete,
    /// Peers wait for indexes that this pass has freed: make another.
    Again,
}

impl Agent {
    /// Loads the datapath, or adopts the one that is pinned. Nothing of the host is changed yet.
    pub fn start(config: Config) -> Result<Self, Error> {
        let pins = Pins::new(&config.pin_root);
        let outcome = load(&pins, config.attach)?;
        info!(pins = %pins.version_dir().display(), ?outcome, "the datapath is loaded");
        Ok(Self {
            programs: Programs::open(&pins, config.attach)?,
            netlink: Netlink::open()?,
            underlay: Underlay::new(Netlink::open()?, &config),
            writer: Writer::open(&pins, Netlink::open()?)?,
            inventory: None,
            facts: Facts::default(),
            attached: BTreeMap::new(),
            masquerade: None,
            merging: Merging::default(),
            cni: Cni::default(),
            complaints: Complaints::default(),
            sent: BTreeMap::new(),
            promoter: Promoter::default(),
            config,
        })
    }

    /// Takes a new inventory for the passes to come.
    pub fn set_inventory(&mut self, inventory: Inventory) {
        info!(nodes = inventory.nodes.len(), "the inventory is taken");
        self.inventory = Some(Arc::new(inventory));
    }

    /// Whether there was a good inventory yet.
    pub fn has_inventory(&self) -> bool {
        self.inventory.is_some()
    }

    /// The netlink port through which this agent changes routes.
    pub fn port(&self) -> Result<u32, Error> {
        Ok(self.writer.port()?)
    }

    /// What an operator must know although all is in sync.
    pub fn remarks(&self) -> Vec<String> {
        self.cni.remarks().to_vec()
    }

    /// The MTU of new pods, as the maps say it to the plugin.
    pub fn pod_mtu(&self) -> u32 {
        self.writer.actual().config.pod_mtu
    }

    /// Puts right what differs, looking anew at what `changes` names. What fails is left for the
    /// next pass, and the rest is done.
    pub fn pass(&mut self, changes: Changes) -> Result<Pass, Vec<Error>> {
        let Some(inventory) = self.inventory.clone() else {
            return Ok(Pass::Complete);
        };
        // An inventory without this node is refused before it comes here.
        let Some(own) = inventory.node(&self.config.node_name) else {
            return Ok(Pass::Complete);
        };
        let ipip0 = self
            .prepare(own, &inventory, changes)
            .map_err(|error| vec![error])?;
        let missing = self.facts.missing_uplinks.iter().cloned();
        let mut errors: Vec<Error> = missing.map(Error::NoUplink).collect();
        // A route or an address that moved can make an uplink of another interface.
        if changes.links || changes.lost || self.attached != self.facts.uplinks {
            let failed = self.attach();
            if failed.is_empty() {
                self.attached = self.facts.uplinks.clone();
            }
            errors.extend(failed);
        }
        let peers = inventory.nodes.iter().map(|node| node.name.as_str());
        let peers = peers.filter(|name| *name != own.name);
        let Assignment { ids, waiting } = peer_ids::assign(&self.writer.ids(), peers);
        let desired = desired(own, &inventory, &self.config, &self.facts, ipip0, &ids);
        let plan = plan(&desired, self.writer.actual());
        self.complaints.about_routes(plan.conflicts);
        self.complaints
            .about_mtu(check_mtu(&self.config, &inventory, &self.facts));
        for step in &plan.steps {
            // While anything may still lead to the peer, its index is not free for another.
            if !errors.is_empty() && step.frees_an_index() {
                continue;
            }
            self.tell(step);
            errors.extend(self.writer.apply(step).map_err(Error::from).err());
        }
        errors.extend(self.masquerade(own, changes.lost).err());
        self.merge(&desired, changes.lost);
        if !errors.is_empty() {
            return Err(errors);
        }
        if !plan.steps.is_empty() {
            info!(
                steps = plan.steps.len(),
                peers = desired.peers.len(),
                "maps and routes are in sync"
            );
        }
        // Last, when pods can be added.
        self.cni
            .ensure(&self.config, &own.pod_cidrs)
            .map_err(|error| vec![error.into()])?;
        Ok(match waiting.is_empty() {
            true => Pass::Complete,
            false => Pass::Again,
        })
    }

    /// Has the kernel confirm the next hops of the peers to which packets went since the last time:
    /// they pass the neighbour table by, so the kernel does not know that it is in use.
    pub fn confirm_next_hops(&mut self) -> Result<(), Error> {
        let mut used = BTreeSet::new();
        for (&id, peer) in &self.writer.actual().peers {
            let sent = self.writer.maps().traffic(id)?.tx_packets;
            if self.sent.insert(id, sent) != Some(sent)
                && let Some(hop) = self.facts.hops.get(&peer.underlay.into())
            {
                used.insert((hop.uplink, hop.next_hop));
            }
        }
        self.underlay.confirm(used);
        Ok(())
    }

    /// Moves one interface from clsact to TCX, if it is the time for that.
    pub fn promote(&mut self, now: Instant) -> Result<(), Error> {
        let promotable = self.programs.promotable()?;
        let Some(ifname) = self.promoter.next(&promotable, now).map(str::to_owned) else {
            return Ok(());
        };
        match self.programs.promote(&ifname) {
            Ok(Promotion::Done) => info!(interface = ifname, "promoted from clsact to TCX"),
            Ok(outcome) => debug!(interface = ifname, ?outcome, "not promoted"),
            Err(error) => {
                self.promoter.failed(&ifname, now);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// What must be there before packets can be sent: forwarding, `ipip0`, and a true view of the
    /// host and of what is written already.
    fn prepare(
        &mut self,
        own: &Node,
        inventory: &Inventory,
        changes: Changes,
    ) -> Result<Ipip0, Error> {
        self.facts = self.underlay.facts(own, inventory, changes)?;
        forwarding::ensure(&self.config.state_dir)?;
        let ipip0 = ipip0::ensure(&mut self.netlink, self.facts.greatest_mtu())?;
        let address = self.own_addresses(own).next();
        ipip0::ensure_address(&mut self.netlink, ipip0, address)?;
        if changes.lost {
            self.writer.read_maps()?;
        }
        if changes.any() && changes != ONLY_NEIGHBOURS {
            self.writer.read_routes()?;
        }
        Ok(ipip0)
    }

    /// Attaches what is not attached, and lets go of what is gone. An interface that no peer is
    /// behind any more keeps its program, which passes whatever is not ours; only an interface
    /// that the configuration does not name loses it.
    fn attach(&mut self) -> Vec<Error> {
        let attached = match self.programs.attached() {
            Ok(attached) => attached,
            Err(error) => return vec![error.into()],
        };
        let mut errors = Vec::new();
        let mut note = |done: Result<(), DatapathError>| errors.extend(done.err());
        // A name that is mistyped must not cost the uplink that was meant.
        let is_named = |name: &String| {
            self.config.uplinks.is_empty()
                || self.config.uplinks.contains(name)
                || !self.facts.missing_uplinks.is_empty()
        };
        for it in attached {
            // Pods are the plugin's.
            let ours = it.program == programs::FROM_UPLINK || it.program == programs::FROM_HOST;
            let unwanted = it.program == programs::FROM_UPLINK && !is_named(&it.ifname);
            if ours && (it.defunct || unwanted) {
                info!(interface = it.ifname, program = it.program, "detached");
                note(self.programs.detach(&it.ifname));
            }
        }
        note(self.programs.attach_host(ipip0::NAME));
        for uplink in self.facts.uplinks.values() {
            note(self.programs.attach_uplink(&uplink.name));
        }
        errors.into_iter().map(Error::from).collect()
    }

    /// Keeps the table of nftables as configured. `look` asks the kernel whether it still is.
    fn masquerade(&mut self, own: &Node, look: bool) -> Result<(), Error> {
        let wanted = Masquerade {
            pods: own.pod_cidrs.clone(),
            outside: self.config.masquerade,
            own: self.own_addresses(own).collect(),
        };
        if self.masquerade.as_ref() == Some(&wanted) && !look {
            return Ok(());
        }
        if !wanted.is_in_place() {
            wanted.apply()?;
        }
        self.masquerade = Some(wanted);
        Ok(())
    }

    /// Has what peers send in UDP merged. `look` asks the kernel whether it still is.
    fn merge(&mut self, desired: &Desired, look: bool) {
        let is_udp = |peer: &Peer| peer.encapsulation == Encapsulation::Udp as u8;
        let mut sockets = BTreeSet::new();
        if desired.peers.values().any(is_udp) {
            let taken = desired.node_addrs.iter();
            let own = taken.filter(|(_, node)| node.flags & NodeAddr::OWN != 0);
            sockets
                .extend(own.map(|(it, _)| SocketAddrV4::new((*it).into(), self.config.udp_port)));
        }
        self.merging.ensure(sockets, &self.config.state_dir, look);
    }

    /// The InternalIPs of this node that are on an interface.
    fn own_addresses(&self, own: &Node) -> impl Iterator<Item = Ipv4Addr> {
        let own = own.internal_ips.iter().copied();
        own.filter(|address| self.facts.local.contains(address))
    }

    /// Logs a step that changes whom this node reaches.
    fn tell(&self, step: &Step) {
        let Step::SetPeerInfo(id, info) = step else {
            return;
        };
        let before = self.writer.actual().peer_info.get(id);
        let (state, peer) = (state_of(info), info.name());
        match (before, state) {
            _ if *id == 0 => {}
            (Some(before), _) if info.name_len == 0 => info!(peer = before.name(), "peer left"),
            (_, Ok(PeerState::Reachable)) => info!(peer, "peer is reachable"),
            (_, Ok(state)) => warn!(peer, why = state.text(), "peer is unreachable"),
            (_, Err(UnknownCode(code))) => warn!(peer, code, "peer is in an unknown state"),
        }
    }
}

/// Complaints that were made: the same is not logged at each pass.
#[derive(Default)]
struct Complaints {
    conflicts: Vec<KernelRoute>,
    mtu: Option<MtuDoesNotFit>,
}

impl Complaints {
    fn about_routes(&mut self, conflicts: Vec<KernelRoute>) {
        for route in conflicts.iter().filter(|it| !self.conflicts.contains(it)) {
            warn!(
                destination = %route.destination,
                protocol = route.protocol,
                remedy = "delete it, or correct the inventory",
                "a route that is not ours stands where ours should"
            );
        }
        self.conflicts = conflicts;
    }

    fn about_mtu(&mut self, checked: Result<(), MtuDoesNotFit>) {
        let refused = checked.err();
        if refused != self.mtu
            && let Some(error) = &refused
        {
            error!(%error, "pods get the largest MTU that fits");
        }
        self.mtu = refused;
    }
}

fn state_of(info: &PeerInfo) -> Result<PeerState, UnknownCode> {
    PeerState::try_from(info.state)
}
