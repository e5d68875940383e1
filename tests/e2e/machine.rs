//! Machines that are no nodes.

use anyhow::Result;
use ipip_lab::Lab;
use ipip_testkit::{host::Host, shell, trash::Item};
use std::net::Ipv4Addr;

/// A machine that is connected to an interface of a node or a gateway. Dropping this value removes it.
pub struct Machine<'a> {
    pub lab: &'a Lab,
    pub host: Host,
    pub address: Ipv4Addr,
    /// Where the other end of its wire is, and its name.
    wire: (&'a Host, &'static str),
}

impl<'a> Machine<'a> {
    pub fn connect(
        lab: &'a Lab,
        wire: (&'a Host, &'static str),
        address: Ipv4Addr,
    ) -> Result<Self> {
        let host = Host::create(format!("{}-machine", lab.prefix()), lab.trash())?;
        let machine = Self {
            lab,
            host,
            address,
            wire,
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

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let ((router, ifname), name) = (self.wire, self.host.name());
        let removed = router
            .ip(&format!("link del {ifname}"))
            .and_then(|_| shell::run(&format!("ip netns del {name}")));
        match removed {
            Ok(_) => self.lab.trash().forget(&Item::Namespace(name.into())),
            Err(error) => eprintln!("removing the machine: {error:#}"),
        }
    }
}
