//! STATUS: whether an ADD would succeed now and, if not, whether existing pods still have their
//! network.

use crate::{add::sizes, error::Error, ipam::Ipam, pod_entry::PodEntries, request::Request};
use ipip_abi::Program;
use ipip_datapath::{Programs, read_config};
use ipip_netlink::Netlink;

/// Checks whether pods can be added.
///
/// # Errors
/// Code 50 if pods cannot be added, code 51 if existing pods may have lost their network too.
pub fn status(request: &Request) -> Result<(), Error> {
    request.version.expect_newest("STATUS")?;
    let unavailable = |error| Error::Unavailable(Box::new(error));
    sizes(&request.conf).map_err(unavailable)?;
    expect_intact(request)?;
    let entries = PodEntries::open(&request.conf.pins).map_err(unavailable)?;
    if !entries.has_room().map_err(unavailable)? {
        return Err(unavailable(Error::Full(ipip_abi::maps::MAX_PODS)));
    }
    Ipam::find(request)
        .and_then(|ipam| ipam.status())
        .map_err(unavailable)
}

/// Fails if an interface or program between the host, the tunnel and the pods is missing.
fn expect_intact(request: &Request) -> Result<(), Error> {
    let conf = &request.conf;
    let ipip0 = read_config(&conf.pins)?.ipip0_ifindex;
    if !Netlink::open()?
        .links()?
        .iter()
        .any(|link| link.index == ipip0 && link.up)
    {
        return Err(Error::Limited(format!(
            "the tunnel interface (index {ipip0}) is gone or down"
        )));
    }
    let attached = Programs::open(&conf.pins, conf.attach)
        .map_err(|error| Error::Unavailable(Box::new(Error::NotReady(error))))?
        .attached()?;
    if !attached
        .iter()
        .any(|it| it.program == Program::FromHost && !it.defunct)
    {
        return Err(Error::Limited(format!(
            "program {} is not attached to the tunnel interface",
            Program::FromHost
        )));
    }
    match attached
        .iter()
        .find(|it| it.program == Program::FromUplink && it.defunct)
    {
        Some(it) => Err(Error::Limited(format!(
            "program {} is no longer on the uplink {}",
            it.program, it.ifname
        ))),
        None => Ok(()),
    }
}
