//! Captures the IPv4 packets of an interface, with a packet socket (packet(7)).

use crate::host::Host;
use anyhow::{Context, Result, ensure};
use etherparse::{
    Icmpv4Slice, Icmpv4Type, IpNumber, Ipv4HeaderSlice, TcpSlice, UdpHeaderSlice, ip_number,
};
use ipip_abi::{
    DEFAULT_UDP_PORT,
    probe::ProbeMessage,
    wire::{IPV4_LEN, UDP_LEN},
};
use ipip_netlink::Netlink;
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt,
            socket,
            sockopt::{RcvBufForce, ReceiveTimeout},
        },
        time::TimeVal,
    },
};
use std::{
    fmt,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The largest packet: BIG TCP goes up to 512 KiB.
const MAX_PACKET: usize = 512 << 10;
/// Bytes of the socket's receive queue, which holds packets while the reading thread is not scheduled.
const BUFFER: usize = 64 << 20;
/// A capture that is stopped ends after this long without a packet.
const SILENCE: TimeVal = TimeVal::new(0, 100_000);
/// How long [`Capture::wait_for`] waits, and how long a stopped capture reads on at most.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Which packets of an interface are captured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CaptureDirection {
    /// All packets.
    Both,
    /// Packets that arrive.
    In,
    /// Packets that leave.
    Out,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    stopped: Arc<AtomicBool>,
    reader: Option<JoinHandle<nix::Result<()>>>,
}

impl Capture {
    /// Starts to capture the IPv4 packets of the interface `ifname` of `host`. The capture has begun when this
    /// returns.
    pub fn start(host: &Host, ifname: &str, direction: CaptureDirection) -> Result<Self> {
        let open = || -> Result<_> {
            let link = Netlink::open()?.link(ifname)?;
            Ok((open_socket()?, link.context("no such interface")?.index))
        };
        let (socket, index) = host
            .enter(open)?
            .with_context(|| format!("cannot capture on {ifname} of {}", host.name()))?;
        let packets = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            socket,
            index: index as usize,
            direction,
            packets: packets.clone(),
            stopped: stopped.clone(),
        };
        Ok(Self {
            packets,
            stopped,
            reader: Some(thread::spawn(move || reader.run())),
        })
    }

    /// Waits until a packet satisfies `wanted`, and returns it; `None` if none does in time.
    pub fn wait_for(&self, wanted: impl Fn(&Packet) -> bool) -> Option<Packet> {
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            if let Some(packet) = lock(&self.packets).iter().find(|packet| wanted(packet)) {
                return Some(packet.clone());
            }
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reads the packets that are still queued, ends the capture, and returns its packets in their order.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        self.end().context("reading captured packets")?;
        Ok(std::mem::take(&mut *lock(&self.packets)))
    }

    fn end(&mut self) -> nix::Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        let Some(reader) = self.reader.take() else {
            return Ok(());
        };
        reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("reading captured packets: {error}");
        }
    }
}

/// A socket for all packets of the namespace, without link headers.
fn open_socket() -> nix::Result<OwnedFd> {
    // Only sockets for every protocol see packets that leave.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    setsockopt(&socket, ReceiveTimeout, &SILENCE)?;
    Ok(socket)
}

/// The thread that reads the socket.
struct Reader {
    socket: OwnedFd,
    index: usize,
    direction: CaptureDirection,
    packets: Arc<Mutex<Vec<Packet>>>,
    stopped: Arc<AtomicBool>,
}

impl Reader {
    fn run(self) -> nix::Result<()> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut deadline = None;
        loop {
            let stopped = self.stopped.load(Ordering::Relaxed);
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) if self.is_wanted(&from) => {
                    let packet = Packet::parse(&buffer[..length]);
                    lock(&self.packets).extend(packet);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if stopped => return Ok(()),
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error),
            }
            if stopped && Instant::now() > *deadline.get_or_insert(Instant::now() + MAX_WAIT) {
                return Ok(());
            }
        }
    }

    fn is_wanted(&self, from: &LinkAddr) -> bool {
        let leaves = from.pkttype() == libc::PACKET_OUTGOING;
        let direction = match self.direction {
            CaptureDirection::Both => true,
            CaptureDirection::In => !leaves,
            CaptureDirection::Out => leaves,
        };
        direction
            && from.ifindex() == self.index
            && u16::from_be(from.protocol()) == libc::ETH_P_IP as u16
    }
}

/// A captured IPv4 packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: IpNumber,
    /// Whether it is a fragment of a packet, but not the first.
    pub is_later_fragment: bool,
    /// Bytes after the IPv4 header.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Parses bytes that begin with an IPv4 header; `None` if they do not, or are cut off.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        let length = match header.total_len() {
            // BIG TCP: the header cannot hold the length.
            0 => bytes.len(),
            length => length.into(),
        };
        Some(Self {
            source: header.source_addr(),
            destination: header.destination_addr(),
            protocol: header.protocol(),
            is_later_fragment: header.fragments_offset().value() != 0,
            payload: bytes.get(header.slice().len()..length)?.to_vec(),
        })
    }

    /// The packet inside a tunnel packet: IP in IP, or UDP to the port that tunnels use by default.
    pub fn inner(&self) -> Option<Self> {
        if self.is_later_fragment {
            return None;
        }
        if self.protocol == ip_number::IPV4 {
            return Self::parse(&self.payload);
        }
        let (_, destination_port) = self.udp_ports()?;
        if destination_port != DEFAULT_UDP_PORT {
            return None;
        }
        Self::parse(
            &self.payload[UdpHeaderSlice::from_slice(&self.payload)
                .ok()?
                .slice()
                .len()..],
        )
    }

    /// Whether it is a whole IPv4 packet in an IPv4 packet (RFC 2003).
    pub fn is_ipip(&self) -> bool {
        self.protocol == ip_number::IPV4 && self.inner().is_some()
    }

    /// Whether it is a probe of a path or its answer, in either encapsulation.
    pub fn is_probe(&self) -> bool {
        let headers = match self.protocol {
            ip_number::IPV4 => IPV4_LEN + UDP_LEN,
            ip_number::UDP => UDP_LEN + IPV4_LEN + UDP_LEN,
            _ => return false,
        };
        let message = self.payload.get(headers..).unwrap_or_default();
        message.starts_with(&ProbeMessage::MAGIC)
    }

    /// Source and destination port of a UDP packet.
    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        if self.protocol != ip_number::UDP || self.is_later_fragment {
            return None;
        }
        let header = UdpHeaderSlice::from_slice(&self.payload).ok()?;
        Some((header.source_port(), header.destination_port()))
    }

    /// Bytes of data in a TCP packet.
    pub fn tcp_data(&self) -> Option<usize> {
        if self.protocol != ip_number::TCP || self.is_later_fragment {
            return None;
        }
        let tcp = TcpSlice::from_slice(&self.payload).ok()?;
        Some(tcp.payload().len())
    }

    /// Whether it is an ICMP echo request from `source` to `destination`.
    pub fn is_echo_request(&self, source: Ipv4Addr, destination: Ipv4Addr) -> bool {
        if self.protocol != ip_number::ICMP || self.is_later_fragment {
            return false;
        }
        let icmp = Icmpv4Slice::from_slice(&self.payload).map(|icmp| icmp.icmp_type());
        (self.source, self.destination) == (source, destination)
            && matches!(icmp, Ok(Icmpv4Type::EchoRequest(_)))
    }
}

/// The packets between the nodes with the outer addresses `ends`, without probes, which go to all peers in both encapsulations.
/// An error unless they are all whole IP-in-IP packets, and go both ways.
pub fn tunnel_packets(packets: &[Packet], ends: [Ipv4Addr; 2]) -> Result<Vec<&Packet>> {
    let [one, other] = ends;
    let tunnel: Vec<_> = packets.iter().filter(|it| !it.is_probe()).collect();
    for (from, to) in [(one, other), (other, one)] {
        let is_there = |it: &&Packet| (it.source, it.destination) == (from, to);
        ensure!(
            tunnel.iter().any(is_there),
            "none from {from} to {to} among {} packets",
            packets.len()
        );
    }
    let is_expected = |it: &Packet| {
        // A fragment of a tunnel packet is not whole.
        it.is_ipip() && [[one, other], [other, one]].contains(&[it.source, it.destination])
    };
    let unexpected = tunnel.iter().find(|it| !is_expected(it));
    ensure!(unexpected.is_none(), "also seen: {unexpected:?}");
    Ok(tunnel)
}

/// `SOURCE > DESTINATION: ICMP, 64 bytes`, or with the inner packet after the colon.
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let protocol = self.protocol.keyword_str().unwrap_or("unknown protocol");
        write!(f, "{} > {}: {protocol}", self.source, self.destination)?;
        match self.inner() {
            Some(inner) => write!(f, ", {inner}"),
            None => write!(f, ", {} bytes", self.payload.len()),
        }
    }
}

fn lock(packets: &Mutex<Vec<Packet>>) -> MutexGuard<'_, Vec<Packet>> {
    packets.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet_builder;
    use std::net::SocketAddrV4;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 42, 1, 2);
    const NODE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
    const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 21);

    fn datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
        let at = SocketAddrV4::new;
        packet_builder::udp(at(from, 7), at(to, port), payload).unwrap()
    }

    #[test]
    fn the_inner_packet_of_either_encapsulation_is_found() {
        let inner = datagram(POD, PEER, 9, b"data");
        let ipip = packet_builder::ipip(NODE, PEER, &inner).unwrap();
        let fou = datagram(NODE, PEER, DEFAULT_UDP_PORT, &inner);
        for outer in [ipip, fou] {
            let outer = Packet::parse(&outer).unwrap();
            let found = outer.inner().unwrap();
            assert_eq!((outer.source, found.source), (NODE, POD));
            assert_eq!(found.udp_ports(), Some((7, 9)));
            assert_eq!(found.inner(), None);
            assert_eq!(outer.is_ipip(), outer.protocol == ip_number::IPV4);
        }
    }

    #[test]
    fn padding_behind_the_packet_is_no_part_of_it_and_a_packet_that_is_cut_off_is_none() {
        let bytes = datagram(POD, PEER, 9, b"data");
        let padded = [&bytes[..], &[0; 20]].concat();
        assert_eq!(Packet::parse(&padded), Packet::parse(&bytes));
        assert_eq!(Packet::parse(&bytes[..bytes.len() - 1]), None);
    }
}
