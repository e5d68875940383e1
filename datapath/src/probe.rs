//! Probes of paths from user space: a prober signs and sends them, and reads the answers that the programs have taken.

use crate::{Error, Maps, interface_name, maps::failed};
use ipip_abi::{
    Addr, Candidate, Config, Peer, maps,
    probe::{ProbeMessage, ProbeSecret, candidate_index},
    wire::{IPV4_LEN, UDP_LEN},
};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket,
        sockopt::{BindToDevice, IpTransparent},
    },
    time::{ClockId, clock_gettime},
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};
use zerocopy::IntoBytes;

/// Bytes of the shortest probe, with its IPv4 and UDP headers. An answer has as many.
pub const SHORTEST_PROBE: usize = IPV4_LEN + UDP_LEN + size_of::<ProbeMessage>();

/// Sends probes to peers.
#[derive(Debug)]
pub struct Prober {
    socket: UdpSocket,
    udp_port: u16,
}

/// What a probe of a candidate needs of the maps.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeTarget {
    /// The peer's entry in `PROBE_SECRETS`.
    pub secret: ProbeSecret,
    /// The candidate's entry in `CANDIDATES`.
    pub path: Peer,
}

/// A probe that was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SentProbe {
    /// The peer's index in `PEERS`.
    pub peer: u16,
    /// The candidate by which it was sent.
    pub candidate: Candidate,
    /// When it was sent, `CLOCK_MONOTONIC`: `sent_at` of the receipt of its answer.
    pub at: Duration,
}

/// The peer's answer to a probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProbeAnswer {
    /// From the probe to the arrival of the answer.
    pub round_trip: Duration,
    /// Bytes of the probe's inner packet, as it arrived at the peer.
    pub len: u16,
    /// Whether the peer accepts data that is sent on this path.
    pub is_accepted: bool,
}

/// A probe was not sent.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// This node has no address for probes.
    #[error(
        "this node has no probe address: it has no pod CIDR of at least four addresses, or its agent has not started yet, or this is another network namespace"
    )]
    NoProbeAddress,
    /// There is no secret for the peer.
    #[error(
        "no secret for its probes: this node or the peer has published no key (spec.probeKey of its IpipNode), or the peer has no pod CIDR of at least four addresses"
    )]
    NoSecret,
    /// The datapath could not be read.
    #[error(transparent)]
    Datapath(#[from] Error),
    /// The kernel refused the socket or the packet.
    #[error("cannot send a probe: {0}")]
    Socket(#[from] io::Error),
}

impl Prober {
    /// A prober with this node's probe address. It needs the capability NET_ADMIN.
    ///
    /// # Errors
    /// The node has no probe address, or the kernel refuses the socket.
    pub fn open(maps: &Maps) -> Result<Self, ProbeError> {
        let config: Config = maps
            .config
            .get(&0, 0)
            .map_err(failed("read", &maps::CONFIG))?;
        let address = Ipv4Addr::from(config.probe_address);
        let interface = interface_name(config.ipip0_ifindex);
        let Some(interface) = interface.filter(|_| !address.is_unspecified()) else {
            return Err(ProbeError::NoProbeAddress);
        };
        Ok(Self {
            socket: socket_at(address, interface)?,
            udp_port: u16::from_be_bytes(config.udp_port),
        })
    }

    /// Sends a probe of `len` bytes to a peer, by a candidate that it has. The shortest one has [`SHORTEST_PROBE`] bytes.
    ///
    /// # Errors
    /// There is no secret for the peer, or the kernel refuses the packet.
    pub fn send(
        &self,
        peer: u16,
        candidate: Candidate,
        target: &ProbeTarget,
        len: u16,
    ) -> Result<SentProbe, ProbeError> {
        let ProbeTarget { secret, path } = target;
        if !secret.is_set() {
            return Err(ProbeError::NoSecret);
        }
        let at = now()?;
        let message = ProbeMessage {
            magic: ProbeMessage::MAGIC,
            kind: ProbeMessage::PROBE,
            flags: 0,
            len: len.to_be_bytes(),
            sent_at: (at.as_nanos() as u64).to_be_bytes(),
            sender: secret.own,
            receiver: secret.peer,
            source: path.source,
            destination: path.underlay,
            candidate: candidate as u8,
            _pad: [0; 3],
            seen: Addr::ZERO,
            code: [0; 8],
        };
        let mut payload = message.signed(secret.key).as_bytes().to_vec();
        let headers = SHORTEST_PROBE - payload.len();
        payload.resize(payload.len().max(usize::from(len) - headers), 0);
        let to = (Ipv4Addr::from(secret.address), self.udp_port);
        self.socket.send_to(&payload, to)?;
        Ok(SentProbe {
            peer,
            candidate,
            at,
        })
    }
}

impl ProbeTarget {
    /// Reads the entries.
    ///
    /// # Errors
    /// The kernel does not return them.
    pub fn read(maps: &Maps, peer: u16, candidate: Candidate) -> Result<Self, Error> {
        let secret = maps.probe_secrets.get(&u32::from(peer), 0);
        let path = candidate_index(peer, candidate as u8);
        let path = maps.candidates.get(&path, 0);
        Ok(Self {
            secret: secret.map_err(failed("read", &maps::PROBE_SECRETS))?,
            path: path.map_err(failed("read", &maps::CANDIDATES))?,
        })
    }
}

impl SentProbe {
    /// The answer, if it has arrived and no later probe of the candidate was answered since.
    ///
    /// # Errors
    /// The kernel does not return the entry.
    pub fn answer(&self, maps: &Maps) -> Result<Option<ProbeAnswer>, Error> {
        let index = candidate_index(self.peer, self.candidate as u8);
        let state = maps.probe_states.get(&index, 0);
        let state = state.map_err(failed("read", &maps::PROBE_STATES))?;
        let sent = self.at.as_nanos() as u64;
        Ok((state.answered == sent).then(|| ProbeAnswer {
            round_trip: Duration::from_nanos(state.received_at.saturating_sub(sent)),
            len: state.len,
            is_accepted: state.flags & ProbeMessage::ACCEPTED != 0,
        }))
    }
}

/// A socket option that is an integer, and that the library does not know.
#[derive(Clone, Copy)]
struct IntOption {
    level: libc::c_int,
    name: libc::c_int,
}

/// Datagrams have no checksum (RFC 768 allows it).
const NO_CHECK: IntOption = IntOption {
    level: libc::SOL_SOCKET,
    name: libc::SO_NO_CHECK,
};
const MTU_DISCOVER: IntOption = IntOption {
    level: libc::IPPROTO_IP,
    name: libc::IP_MTU_DISCOVER,
};

impl SetSockOpt for IntOption {
    type Val = libc::c_int;

    fn set<F: AsFd>(&self, fd: &F, value: &libc::c_int) -> nix::Result<()> {
        // SAFETY: the kernel reads one integer, whose address and length it gets.
        let done = unsafe {
            libc::setsockopt(
                fd.as_fd().as_raw_fd(),
                self.level,
                self.name,
                (&raw const *value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Errno::result(done).map(drop)
    }
}

/// A socket whose source is an address that no interface has, and that sends through this interface.
fn socket_at(address: Ipv4Addr, interface: String) -> io::Result<UdpSocket> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&fd, IpTransparent, &true)?;
    // The code in the message protects it. A checksum that the network card was to compute would end in the answer, which
    // the peer writes into the same packet.
    setsockopt(&fd, NO_CHECK, &1)?;
    // A probe larger than the route's MTU goes out whole: it shows whether the path takes it.
    setsockopt(&fd, MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)?;
    // Nowhere else, whatever the host's rules say: outside of the tunnel it would have a pod's source.
    setsockopt(&fd, BindToDevice, &interface.into())?;
    bind(
        fd.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(address, 0)),
    )?;
    Ok(fd.into())
}

fn now() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}
