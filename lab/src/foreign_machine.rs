//! Machines that are no nodes.

use anyhow::Result;
use ipip_testkit::{host::Host, trash::Trash};
use std::net::Ipv4Addr;

/// A machine that is connected to an interface of a node or a gateway. Dropping this value removes it.
#[derive(Debug)]
pub struct ForeignMachine<'a> {
    /// The machine. Its interface is `eth0`.
    pub host: Host,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where the other end of its wire is, and its name.
    wire: (&'a Host, &'static str),
    trash: &'a Trash,
}

impl<'a> ForeignMachine<'a> {
    /// Makes the machine, whose name begins with `prefix`, and connects it.
    pub fn connect(
        prefix: &str,
        trash: &'a Trash,
        wire: (&'a Host, &'static str),
        address: Ipv4Addr,
    ) -> Result<Self> {
        let machine = Self {
            host: Host::create(format!("{prefix}-machine"), trash)?,
            address,
            wire,
            trash,
        };
        let ((router, ifname), host) = (wire, &machine.host);
        let name = host.name();
        router.ip(&format!(
            "link add {ifname} type veth peer name eth0 netns {name}"
        ))?;
        router.ip(&format!("link set {ifname} up"))?;
        host.ip(&format!("address add {address}/24 dev eth0"))?;
        host.ip("link set eth0 up")?;
        Ok(machine)
    }
}

impl Drop for ForeignMachine<'_> {
    fn drop(&mut self) {
        let (router, ifname) = self.wire;
        let removed = router
            .ip(&format!("link del {ifname}"))
            .and_then(|_| self.host.remove(self.trash));
        if let Err(error) = removed {
            eprintln!("removing a machine: {error:#}");
        }
    }
}
