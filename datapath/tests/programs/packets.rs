//! Builds valid and malformed packets.

use etherparse::{IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options};
use std::net::Ipv4Addr;

pub use ipip_abi::wire::{PROTO_ICMP as ICMP, PROTO_TCP as TCP, PROTO_UDP as UDP};

/// An IPv4 packet that is built step by step; [`Ip::bytes`] returns it with a correct checksum.
#[derive(Clone)]
pub struct Ip {
    header: Ipv4Header,
    payload: Vec<u8>,
}

impl Ip {
    /// `protocol` from `source` to `destination`, with an empty payload.
    pub fn new(source: &str, destination: &str, protocol: u8) -> Self {
        let mut header = Ipv4Header::new(
            0,
            64,
            IpNumber(protocol),
            octets(source),
            octets(destination),
        )
        .expect("a short packet");
        header.identification = 0x1234;
        header.dont_fragment = false;
        Self {
            header,
            payload: Vec::new(),
        }
    }

    /// A UDP datagram with a payload.
    pub fn udp(
        source: &str,
        source_port: u16,
        destination: &str,
        destination_port: u16,
        payload: &[u8],
    ) -> Self {
        let mut datagram = Vec::new();
        datagram.extend(source_port.to_be_bytes());
        datagram.extend(destination_port.to_be_bytes());
        datagram.extend(((payload.len() + 8) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        Self::new(source, destination, UDP).payload(datagram)
    }

    /// A TCP segment without data.
    pub fn tcp(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Self {
        let mut segment = vec![0; 20];
        segment[0..2].copy_from_slice(&source_port.to_be_bytes());
        segment[2..4].copy_from_slice(&destination_port.to_be_bytes());
        segment[12] = 5 << 4;
        Self::new(source, destination, TCP).payload(segment)
    }

    /// Sets the flags of a TCP segment.
    pub fn flags(mut self, flags: u8) -> Self {
        self.payload[13] = flags;
        self
    }

    /// Adds data to a TCP segment or a datagram.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.payload.extend(data);
        self
    }

    pub fn payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.header.time_to_live = ttl;
        self
    }

    /// The byte that DSCP and ECN share.
    pub fn tos(mut self, tos: u8) -> Self {
        self.header.dscp = (tos >> 2).try_into().expect("6 bits");
        self.header.ecn = IpEcn::try_new(tos & 3).expect("2 bits");
        self
    }

    pub fn more_fragments(mut self) -> Self {
        self.header.more_fragments = true;
        self
    }

    /// In units of 8 bytes.
    pub fn fragment_offset(mut self, offset: u16) -> Self {
        self.header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        self
    }

    /// Options of four no-operations.
    pub fn options(mut self) -> Self {
        self.header.options = Ipv4Options::from([1, 1, 1, 1]);
        self
    }

    /// The packet with its total length and checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let mut header = self.header.clone();
        header
            .set_payload_len(self.payload.len())
            .expect("a short packet");
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(&self.payload);
        bytes
    }
}

/// A packet in a frame.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(packet);
    frame
}

/// `packet` with byte `at` changed and the checksum of its header updated.
pub fn patched(packet: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[at] = value;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The checksum of RFC 1071; 0 for a header whose checksum is correct.
pub fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: &str) -> [u8; 4] {
    address
        .parse::<Ipv4Addr>()
        .expect("an IPv4 address")
        .octets()
}
