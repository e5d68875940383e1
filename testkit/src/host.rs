//! A simulated machine: a network namespace, and sockets and commands in it.

use crate::{
    shell,
    trash::{Item, Trash},
};
use anyhow::{Context, Result};
use ipip_netlink::{LinkChange, NetNs, Netlink, set_sysctl};
use nix::{libc, setsockopt_impl, sockopt_impl};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Output},
    time::Duration,
};

nix::sockopt_impl!(
    /// `IP_MTU_DISCOVER` of ip(7): whether packets have DF set, as one of `IP_PMTUDISC_*`.
    IpMtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    i32
);

/// A network namespace that stands for a machine: a node, a pod, a gateway, a host on the Internet.
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: NetNs,
}

impl Host {
    /// Makes the namespace `name`, with its loopback up.
    pub fn create(name: String, trash: &Trash) -> Result<Self> {
        trash.add(Item::Namespace(name.clone()));
        let netns =
            NetNs::create(&name).with_context(|| format!("cannot make the namespace {name}"))?;
        let host = Self { name, netns };
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// Gives the namespace of a process the name `name`.
    pub fn attach(name: String, process: u32, trash: &Trash) -> Result<Self> {
        trash.add(Item::Namespace(name.clone()));
        shell::run(&format!("ip netns attach {name} {process}"))?;
        let netns = NetNs::open(format!("/run/netns/{name}"))?;
        Ok(Self { name, netns })
    }

    /// Deletes the namespace before everything else in `trash`.
    ///
    /// # Errors
    /// It does not exist.
    pub fn remove(&self, trash: &Trash) -> Result<()> {
        shell::run(&format!("ip netns delete {}", self.name))?;
        trash.forget(&Item::Namespace(self.name.clone()));
        Ok(())
    }

    /// Name of the namespace, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's file.
    pub fn netns_path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `f` in a thread that has entered the namespace. Sockets that it opens stay there.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns
            .run(f)
            .with_context(|| format!("cannot enter the namespace {}", self.name))
    }

    /// Runs `ip` with these arguments for the namespace.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        shell::run(&format!("ip -n {} {arguments}", self.name))
    }

    /// Loads nftables rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.enter(|| shell::run_with_input(Command::new("nft").args(["-f", "-"]), rules))?
            .with_context(|| format!("in {}", self.name))?;
        Ok(())
    }

    /// Sets a kernel setting of the namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| set_sysctl(key, value))?
            .with_context(|| format!("in {}", self.name))
    }

    /// Sets `gso_ipv4_max_size` and `gro_ipv4_max_size` of an interface.
    pub fn set_gso_max(&self, ifname: &str, bytes: u32) -> Result<()> {
        let set = || {
            let mut netlink = Netlink::open()?;
            let link = netlink.link(ifname)?.context("no such interface")?;
            let change = LinkChange {
                gso_ipv4_max: Some(bytes),
                ..LinkChange::default()
            };
            anyhow::Ok(netlink.change_link(link.index, &change)?)
        };
        self.enter(set)?
            .with_context(|| format!("{ifname} of {}", self.name))
    }

    /// `gso_ipv4_max_size` of an interface, in bytes.
    pub fn gso_max(&self, ifname: &str) -> Result<u32> {
        let link = self.enter(|| Netlink::open()?.link(ifname))??;
        let link = link.with_context(|| format!("{} has no {ifname}", self.name))?;
        link.gso_ipv4_max
            .context("the kernel does not report gso_ipv4_max_size")
    }

    /// Runs `command` in the namespace to its end.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        self.enter(|| command.output())?
            .with_context(|| format!("cannot run {command:?} in {}", self.name))
    }

    /// Starts a program in the namespace that runs until the test ends. Its output is appended to the file `log`.
    pub fn daemon(&self, command: &mut Command, log: &Path, trash: &Trash) -> Result<Child> {
        self.enter(|| shell::daemon(command, log, trash))?
            .with_context(|| format!("in {}", self.name))
    }

    /// A counter of the namespace's kernel in `/proc/net/snmp`, for example `Ip`, `ForwDatagrams` (RFC 4293).
    pub fn snmp(&self, protocol: &str, name: &str) -> Result<u64> {
        let text = self.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let start = format!("{protocol}: ");
        let mut rows = text.lines().filter_map(|row| row.strip_prefix(&start));
        let (names, values) = rows.next().zip(rows.next()).unwrap_or_default();
        let mut columns = names.split(' ').zip(values.split(' '));
        let column = columns.find(|(found, _)| *found == name);
        let (_, value) = column.with_context(|| format!("no {protocol} {name} in {text}"))?;
        Ok(value.parse()?)
    }

    /// A UDP socket on `port` of every address (0: any port). Receiving times out after five seconds.
    pub fn udp(&self, port: u16) -> Result<UdpSocket> {
        let socket = self
            .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot open UDP port {port} in {}", self.name))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    }

    /// A listening TCP socket on `port` of every address.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        self.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot listen on TCP port {port} in {}", self.name))
    }

    /// A TCP connection from any port. Connecting times out after five seconds, reads and writes after 30.
    pub fn connect(&self, to: SocketAddrV4) -> Result<TcpStream> {
        let stream = self
            .enter(|| TcpStream::connect_timeout(&to.into(), Duration::from_secs(5)))?
            .with_context(|| format!("cannot connect from {} to {to}", self.name))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }
}
