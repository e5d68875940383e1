//! The host apart from maps and routes: the handles that observe and change it.

use crate::{
    cni_install::CniInstaller,
    config::Config,
    host::{
        facts::{Facts, Ipip0},
        firewall::Traffic,
        fou::FouSockets,
        guard::Guard,
        ipip0,
        lan_probe::LanProbe,
        masquerade::Masquerade,
        observe::{self, Observer},
        pods::PodLinks,
        sysctls::{self, Scope, Sysctls},
    },
    nodes::{
        inventory::{Inventory, Node},
        path,
    },
    problems::Problem,
    reconcile::{attachments::Attachments, desired::Desired, error::Error, rules::Rules},
    repairs::{self, Repair},
};
use ipip_abi::{Encapsulation, NodeAddr, Peer};
use ipip_datapath::{Pins, Programs};
use ipip_netlink::{Changes, Netlink};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    time::Instant,
};

/// The handles, and for each the state that was set last.
pub struct HostSetup {
    netlink: Netlink,
    observer: Observer,
    lan_probe: LanProbe,
    attachments: Attachments,
    sysctls: Sysctls,
    pods: PodLinks,
    /// MTU and address of `ipip0` as they were set last.
    tunnel_mtu: Option<u16>,
    tunnel_address: Option<Ipv4Addr>,
    rules: Rules,
    fou: FouSockets,
    cni: CniInstaller,
}

impl HostSetup {
    /// Opens the handles. Does not change the host.
    pub fn open(config: &Config, pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::open()?,
            observer: Observer::new(Netlink::open()?, observe_settings(config)),
            lan_probe: LanProbe::new(Netlink::open()?),
            attachments: Attachments::new(pins, Programs::open(pins, config.attach)?),
            sysctls: Sysctls::new(&config.state_dir),
            pods: PodLinks::open(pins)?,
            tunnel_mtu: None,
            tunnel_address: None,
            rules: Rules::default(),
            fou: FouSockets::default(),
            cni: CniInstaller::default(),
        })
    }

    /// Returns the facts that the node `own` needs, with `encapsulation` as the configured one. Reads again only the state
    /// that `changes` names.
    pub fn observe(
        &mut self,
        own: &Node,
        inventory: &Inventory,
        encapsulation: Encapsulation,
        changes: Changes,
    ) -> Result<Facts, Error> {
        let underlays = path::underlays(own, inventory);
        let further = path::further_underlays(own, inventory, encapsulation, &underlays);
        let mut facts = self.observer.facts(own, &underlays, &further, changes)?;
        facts.lan_hosts.clone_from(self.lan_probe.answers());
        Ok(facts)
    }

    /// Asks the local networks for machines that have an address of a remote node. Returns whether the answers have
    /// changed.
    pub fn probe_lan(
        &mut self,
        candidates: &BTreeSet<(u32, Ipv4Addr)>,
        gateways: &BTreeSet<Ipv4Addr>,
        now: Instant,
    ) -> Result<bool, Error> {
        Ok(self.lan_probe.step(candidates, gateways, now)?)
    }

    /// Sets forwarding and the tunnel interface, which packets need before anything else. Failures that leave an
    /// interface are appended to `errors`.
    ///
    /// # Errors
    /// There is no tunnel interface.
    pub fn ensure_ipip0(
        &mut self,
        own: &Node,
        facts: &Facts,
        errors: &mut Vec<Error>,
    ) -> Result<Ipip0, Error> {
        self.sysctls.ensure(Scope::Host, &sysctls::of_host());
        let mtu = facts.greatest_mtu();
        let mut changes = ipip0::create(&mut self.netlink, mtu)?;
        let is_new = !changes.is_empty();
        if is_new {
            self.sysctls.forget(Scope::Tunnel);
        }
        let settings = sysctls::of_tunnel(ipip0::FAR_END);
        self.sysctls.ensure(Scope::Tunnel, &settings);
        match ipip0::bring_up(&mut self.netlink, mtu) {
            Ok(more) if is_new => drop(more),
            Ok(more) => changes.extend(more),
            Err(error) => errors.push(error.into()),
        }
        let ipip0 = ipip0::get(&mut self.netlink)?;
        if self.tunnel_mtu == Some(mtu) {
            changes
                .iter()
                .for_each(|it| repairs::record(Repair::TunnelLink, it));
        }
        self.tunnel_mtu = Some(mtu);
        let address = own_addresses(own, facts).next();
        match ipip0::ensure_address(&mut self.netlink, ipip0, address) {
            Ok(changes) => {
                if self.tunnel_address == address {
                    changes
                        .iter()
                        .for_each(|it| repairs::record(Repair::TunnelAddress, it));
                }
                self.tunnel_address = address;
            }
            Err(error) => errors.push(error.into()),
        }
        Ok(ipip0)
    }

    /// Attaches the programs of uplinks and `ipip0`, and detaches unwanted ones. Makes the uplinks forward.
    pub fn ensure_programs(
        &mut self,
        config: &Config,
        facts: &Facts,
        changes: Changes,
    ) -> Vec<Error> {
        let uplinks = facts.uplinks.values();
        let settings: Vec<_> = uplinks
            .flat_map(|it| sysctls::of_uplink(&it.name))
            .collect();
        self.sysctls.ensure(Scope::Uplinks, &settings);
        let recheck = changes.links || changes.filters || changes.lost;
        self.attachments.ensure(
            &mut self.netlink,
            &config.uplinks,
            facts,
            self.observer.links(),
            recheck,
        )
    }

    /// Repairs the host's side of pods. Examines only what `changes` names; `learned` is the number of new MACs that pods
    /// have stated.
    pub fn ensure_pods(&mut self, changes: Changes, learned: u64) -> Vec<Error> {
        let now = Instant::now();
        let neighbours = self.observer.permanent_neighbours();
        if !changes.any() || changes.only_neighbours() {
            let is_news = changes.any() && self.pods.may_lack_neighbours(neighbours, learned);
            if !is_news && !self.pods.wait(now) {
                return Vec::new();
            }
        }
        let mut errors: Vec<Error> = Vec::new();
        if changes.links || changes.lost {
            errors.extend(self.pods.reconcile_records().map_err(Error::from).err());
        }
        let pods = match self.pods.list(self.observer.links()) {
            Ok(pods) => pods,
            Err(error) => {
                errors.push(error.into());
                return errors;
            }
        };
        if changes.only_neighbours() {
            let errors = self
                .pods
                .ensure_neighbours(&mut self.netlink, &pods, neighbours, now);
            if errors.is_empty() {
                self.pods.set_examined(neighbours, learned);
            }
            return errors.into_iter().map(Error::from).collect();
        }
        if changes.may_be_of_routes() {
            self.pods.forget_routes();
        }
        let (pods, of_pods) = self.pods.ensure(&mut self.netlink, &pods, neighbours, now);
        if of_pods.is_empty() {
            self.pods.set_examined(neighbours, learned);
        }
        errors.extend(of_pods.into_iter().map(Error::from));
        if changes.links || changes.settings || changes.lost {
            let settings: Vec<_> = pods
                .iter()
                .flat_map(|pod| sysctls::of_pod(&pod.link.name))
                .collect();
            self.sysctls.ensure(Scope::Pods, &settings);
        }
        if changes.filters || changes.lost {
            errors.extend(self.attachments.ensure_pods(&mut self.netlink, &pods));
        }
        errors
    }

    /// Whether pods must be examined again now, although nothing has changed.
    pub fn wait_for_pods(&self) -> bool {
        self.pods.wait(Instant::now())
    }

    /// Sets the rules of nftables. With `recheck`, queries the kernel even if they are unchanged.
    pub fn ensure_rules(
        &mut self,
        config: &Config,
        (own, inventory): (&Node, &Inventory),
        facts: &Facts,
        desired: &Desired,
        recheck: bool,
    ) -> Vec<Error> {
        let masquerade = Masquerade {
            pods: own.pod_cidrs.clone(),
            outside: config.masquerade,
            own: own_addresses(own, facts).collect(),
            udp_port: config.udp_port,
        };
        let is_inside = |address| {
            facts.local.contains(&address)
                || own.pod_cidrs.iter().any(|it| it.contains(address))
                || desired.routes.keys().any(|it| it.contains(address))
        };
        let mut errors = Vec::new();
        errors.extend(
            self.rules
                .ensure_masquerade(masquerade, is_inside, recheck)
                .err(),
        );
        let uplinks = facts.uplinks.values().map(|it| it.name.clone());
        let guard = Guard {
            uplinks: uplinks.collect(),
            routed: config.routed_interfaces.clone(),
            udp_port: config.udp_port,
        };
        self.rules.ensure_guard(guard, recheck);
        let accept = config.forward_accept.then_some(&own.pod_cidrs[..]);
        self.rules.ensure_forward_accept(accept, recheck);
        if recheck {
            let of_peer = |it: &&Node| it.name != own.name && !it.pod_cidrs.is_empty();
            let uplinks = facts.uplinks.iter();
            let uplinks = uplinks.filter(|(index, _)| self.observer.has_default_route(**index));
            let traffic = Traffic {
                pods: &own.pod_cidrs,
                peer_pods: inventory
                    .nodes
                    .iter()
                    .find(of_peer)
                    .map(|it| it.pod_cidrs[0]),
                uplinks: uplinks
                    .map(|(index, uplink)| (*index, uplink.name.as_str()))
                    .collect(),
            };
            let traffic = config.forward_accept.then_some(&traffic);
            self.rules.check_firewalls(traffic);
        }
        errors
    }

    /// Opens a FOU socket on each own address if any peer sends in UDP. With `recheck`, queries the kernel even
    /// if the sockets are unchanged.
    pub fn ensure_fou(&mut self, config: &Config, desired: &Desired, recheck: bool) {
        let is_udp = |peer: &Peer| peer.encapsulation == Encapsulation::Udp as u8;
        let sockets: BTreeSet<SocketAddrV4> = if desired.peers.values().any(is_udp) {
            desired
                .node_addrs
                .iter()
                .filter(|(_, node)| node.flags & NodeAddr::OWN != 0)
                .map(|(address, _)| SocketAddrV4::new((*address).into(), config.udp_port))
                .collect()
        } else {
            BTreeSet::new()
        };
        self.fou.ensure(sockets, &config.state_dir, recheck);
    }

    /// Installs the files that container runtimes need. Call it only when pods can be added.
    pub fn ensure_cni(&mut self, config: &Config, own: &Node) -> Result<(), Error> {
        Ok(self.cni.ensure(config, &own.pod_cidrs)?)
    }

    /// Confirms the neighbour entries of next hops, given as uplink and address.
    pub fn confirm(&mut self, used: BTreeSet<(u32, Ipv4Addr)>) {
        self.observer.confirm(used);
    }

    /// What an operator should correct on this host.
    pub fn problems(&self) -> Vec<Problem> {
        let of_host = self.sysctls.problems().chain(self.pods.problems());
        let of_others = self.cni.problems().iter().chain(self.observer.leftovers());
        let of_host = of_host.chain(self.rules.problems());
        of_host.chain(of_others).cloned().collect()
    }
}

/// What the configuration says about this host.
pub fn observe_settings(config: &Config) -> observe::Settings {
    observe::Settings {
        uplinks: config.uplinks.clone(),
        local_addresses: config.local_addresses.clone(),
        resolver_files: config.resolver_files.clone(),
    }
}

/// The InternalIPs of this node that are on an interface.
fn own_addresses(own: &Node, facts: &Facts) -> impl Iterator<Item = Ipv4Addr> {
    let own = own.internal_ips.iter().copied();
    own.filter(|address| facts.local.contains(address))
}
