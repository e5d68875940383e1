//! CHECK: compares a container with the result of ADD.

use crate::{
    add::pod_entry,
    env::Container,
    error::Error,
    ipam::Ipam,
    leases::Leases,
    pod_entry::PodEntries,
    pod_link::{Ends, GATEWAY, PodLink, forwarding, host_route, pod_routes},
    request::Request,
    result::Previous,
};
use ipip_abi::{Pod, Program};
use ipip_datapath::Programs;
use ipip_netlink::{Link, Netlink, Route, sysctl};
use std::net::Ipv4Addr;

/// One sentence for each difference.
type Findings = Vec<String>;

/// Compares the container with the result of ADD.
///
/// # Errors
/// [`Error::Check`] lists every difference.
pub fn check(request: &Request, container: &Container) -> Result<(), Error> {
    let previous = request.conf.previous.as_ref().ok_or(Error::NoPrevious)?;
    let address = Previous::parse(previous, request.version)?.address()?;
    let mut link = PodLink::open(&request.conf.network, container)?;
    let mut findings = Findings::new();
    // An object that cannot be read counts as a difference.
    let mut note = |found: Result<Findings, Error>| match found {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(error.to_string()),
    };
    note(
        Leases::adopt(&request.conf)
            .and_then(|()| Ipam::find(request)?.check(container))
            .map(|()| Findings::new()),
    );
    match link.ends() {
        Ok(ends) => {
            note(Ok(of_links(&ends)));
            note(of_host(&mut link.host, &ends, address));
            note(of_pod(&mut link.pod, &ends, address));
            note(of_programs(request, &ends.host.name));
            note(of_entry(request, &ends, address));
        }
        Err(Error::Vanished(name)) => note(Ok(vec![format!("interface {name} is gone")])),
        Err(error) => note(Err(error)),
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(Error::Check(findings))
    }
}

fn of_links(ends: &Ends) -> Findings {
    let mut findings = Findings::new();
    for (side, end) in [("host", &ends.host), ("pod", &ends.pod)] {
        if !end.up {
            findings.push(format!("interface {} of the {side} is down", end.name));
        }
    }
    if ends.host.peer_index != Some(ends.pod.index) {
        findings.push(format!(
            "interface {} of the pod is not the other end of {}",
            ends.pod.name, ends.host.name
        ));
    }
    findings
}

fn of_host(host: &mut Netlink, ends: &Ends, address: Ipv4Addr) -> Result<Findings, Error> {
    let mut findings = Findings::new();
    let route = host_route(ends.host.index, address);
    findings.extend(of_route(&host.routes()?, &route, &ends.host));
    findings.extend(of_neighbour(host, &ends.host, address, ends.pod.mac)?);
    let name = &ends.host.name;
    if sysctl(&forwarding(name))? != "1" {
        findings.push(format!("the host does not forward packets from {name}"));
    }
    Ok(findings)
}

fn of_pod(pod: &mut Netlink, ends: &Ends, address: Ipv4Addr) -> Result<Findings, Error> {
    let mut findings = Findings::new();
    let index = ends.pod.index;
    let has_address = |a: &ipip_netlink::Address| a.index == index && a.network == address.into();
    if !pod.addresses()?.iter().any(has_address) {
        findings.push(format!("{} has no address {address}/32", ends.pod.name));
    }
    let routes = pod.routes()?;
    for route in pod_routes(index) {
        findings.extend(of_route(&routes, &route, &ends.pod));
    }
    findings.extend(of_neighbour(pod, &ends.pod, GATEWAY, ends.host.mac)?);
    Ok(findings)
}

/// Compares where the route leads, but not its origin (`protocol`).
fn of_route(routes: &[Route], wanted: &Route, end: &Link) -> Option<String> {
    let target = |route: &Route| (route.destination, route.gateway, route.oif, route.kind);
    let found = routes.iter().any(|route| target(route) == target(wanted));
    (!found).then(|| format!("route {} on {} is missing", wanted.destination, end.name))
}

fn of_neighbour(
    netlink: &mut Netlink,
    end: &Link,
    address: Ipv4Addr,
    mac: [u8; 6],
) -> Result<Option<String>, Error> {
    let found = netlink.neighbours()?.into_iter().any(|neighbour| {
        neighbour.index == end.index
            && neighbour.address == address
            && neighbour.mac == Some(mac)
            && neighbour.permanent
    });
    Ok((!found).then(|| format!("permanent neighbour {address} on {} is missing", end.name)))
}

fn of_programs(request: &Request, host_ifname: &str) -> Result<Findings, Error> {
    let attached = Programs::open_for_pods(&request.conf.pins, request.conf.attach)?.attached()?;
    let missing = [Program::FromPod, Program::ToPod]
        .into_iter()
        .filter(|program| {
            !attached
                .iter()
                .any(|a| a.ifname == host_ifname && a.program == *program && !a.defunct)
        });
    Ok(missing
        .map(|program| format!("program {program} is not attached to {host_ifname}"))
        .collect())
}

fn of_entry(request: &Request, ends: &Ends, address: Ipv4Addr) -> Result<Findings, Error> {
    let entry = PodEntries::open(&request.conf.pins)?.get(address)?;
    let wanted = pod_entry(ends, request.conf.bandwidth);
    let leads_there = |entry: &Pod| {
        let flags = entry.flags;
        *entry == Pod { flags, ..wanted }
    };
    Ok(match entry {
        // Additional flags are no difference: a runtime need not repeat the limits of ADD at CHECK.
        Some(entry) if leads_there(&entry) && entry.flags & wanted.flags == wanted.flags => {
            Findings::new()
        }
        Some(entry) if leads_there(&entry) => vec![format!(
            "the pod entry of {address} lacks the flag that the pod's bandwidth is limited"
        )],
        Some(entry) => vec![format!(
            "the pod entry of {address} points to interface {} and MAC {}",
            entry.ifindex, entry.mac
        )],
        None => vec![format!("the pod entry of {address} is missing")],
    })
}
