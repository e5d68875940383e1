//! ICMP echo requests, with all details of the answer: TTL, or which router sent which error.

use crate::host::{Host, IpMtuDiscover};
use anyhow::{Context, Result, bail};
use etherparse::{
    IcmpEchoHeader, Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice, PacketBuilder,
    icmpv4::{DestUnreachableHeader, TYPE_DEST_UNREACH},
};
use nix::{
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv, sendto,
        setsockopt, socket,
        sockopt::{Ipv4Ttl, ReceiveTimeout},
    },
    sys::time::TimeVal,
};
use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// One echo request.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Destination.
    pub to: Ipv4Addr,
    /// Source address, if the host has several.
    pub from: Option<Ipv4Addr>,
    /// Bytes of data.
    pub bytes: usize,
    /// Whether DF is set.
    pub dont_fragment: bool,
    /// TTL of the request.
    pub ttl: u8,
    /// How long to wait for an answer.
    pub timeout: Duration,
}

/// The answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// An echo reply.
    Reply {
        /// Source of the reply.
        from: Ipv4Addr,
        /// TTL on arrival.
        ttl: u8,
    },
    /// ICMP `fragmentation needed`: the packet is larger than a link.
    FragmentationNeeded {
        /// The router that sent the error.
        from: Ipv4Addr,
        /// MTU of the next link.
        mtu: u16,
    },
    /// ICMP `destination unreachable` with another code.
    Unreachable {
        /// The router that sent the error.
        from: Ipv4Addr,
        /// ICMP code.
        code: u8,
    },
    /// ICMP `time exceeded`.
    TimeExceeded {
        /// The router that sent the error.
        from: Ipv4Addr,
    },
    /// The sending host refused the packet (`EMSGSIZE`): it is larger than its own route allows.
    TooBigForOwnRoute,
    /// No answer within the timeout.
    Silence,
}

impl Ping {
    /// A small request that may be fragmented.
    pub fn to(to: Ipv4Addr) -> Self {
        Self {
            to,
            from: None,
            bytes: 56,
            dont_fragment: false,
            ttl: 64,
            timeout: Duration::from_secs(2),
        }
    }

    /// Sets the number of bytes of data.
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Sets DF.
    pub fn dont_fragment(self) -> Self {
        Self {
            dont_fragment: true,
            ..self
        }
    }

    /// Sends it once from `host`.
    pub fn send(self, host: &Host) -> Result<Answer> {
        static NEXT_ID: AtomicU16 = AtomicU16::new(1);
        let echo = IcmpEchoHeader {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() as u16) << 8,
            seq: 1,
        };
        let socket = host
            .enter(|| self.socket())?
            .with_context(|| format!("cannot open an ICMP socket in {}", host.name()))?;
        let mut packet = Vec::new();
        PacketBuilder::ipv4([0; 4], self.to.octets(), self.ttl)
            .icmpv4_echo_request(echo.id, echo.seq)
            .write(
                &mut packet,
                &(0..self.bytes).map(|i| i as u8).collect::<Vec<_>>(),
            )?;
        // The kernel writes the IP header.
        let icmp = &packet[20..];
        let [a, b, c, d] = self.to.octets();
        match sendto(
            socket.as_raw_fd(),
            icmp,
            &SockaddrIn::new(a, b, c, d, 0),
            MsgFlags::empty(),
        ) {
            Ok(_) => {}
            Err(nix::errno::Errno::EMSGSIZE) => return Ok(Answer::TooBigForOwnRoute),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot ping {} from {}", self.to, host.name()));
            }
        }
        let deadline = Instant::now() + self.timeout;
        let mut buffer = vec![0; 65_536];
        while Instant::now() < deadline {
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => {
                    if let Some(answer) = answer(&buffer[..len], echo) {
                        return Ok(answer);
                    }
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot receive ICMP"),
            }
        }
        Ok(Answer::Silence)
    }

    /// Sends it until a reply comes, five times at most, and returns the reply's TTL. The first packet of a path
    /// may be lost during address resolution.
    pub fn reply_ttl(self, host: &Host) -> Result<u8> {
        let mut last = Answer::Silence;
        for _ in 0..5 {
            last = self.send(host)?;
            if let Answer::Reply { ttl, .. } = last {
                return Ok(ttl);
            }
        }
        bail!(
            "no reply to a ping of {} bytes from {} to {}: {last:?}",
            self.bytes,
            host.name(),
            self.to
        )
    }

    fn socket(&self) -> nix::Result<OwnedFd> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Icmp,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, 50_000))?;
        let discover = if self.dont_fragment {
            libc::IP_PMTUDISC_DO
        } else {
            libc::IP_PMTUDISC_DONT
        };
        setsockopt(&socket, IpMtuDiscover, &discover)?;
        setsockopt(&socket, Ipv4Ttl, &self.ttl.into())?;
        if let Some(from) = self.from {
            let [a, b, c, d] = from.octets();
            bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0))?;
        }
        Ok(socket)
    }
}

/// Parses a received packet as the answer to our request; `None` if it is another packet.
fn answer(packet: &[u8], ours: IcmpEchoHeader) -> Option<Answer> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(&packet[ip.slice().len()..]).ok()?;
    let from = ip.source_addr();
    if let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() {
        return (echo == ours).then_some(Answer::Reply {
            from,
            ttl: ip.ttl(),
        });
    }
    // An error quotes the header of our request and at least 8 bytes more.
    let quoted_ip = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
    let quoted = Icmpv4Slice::from_slice(&icmp.payload()[quoted_ip.slice().len()..]).ok()?;
    if quoted.icmp_type() != Icmpv4Type::EchoRequest(ours) {
        return None;
    }
    match icmp.icmp_type() {
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) => Some(Answer::FragmentationNeeded {
            from,
            mtu: next_hop_mtu,
        }),
        Icmpv4Type::TimeExceeded(_) => Some(Answer::TimeExceeded { from }),
        _ if icmp.type_u8() == TYPE_DEST_UNREACH => Some(Answer::Unreachable {
            from,
            code: icmp.code_u8(),
        }),
        _ => None,
    }
}
