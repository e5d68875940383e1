//! IPv4 (RFC 791) and ARP (RFC 826) as a receiver reads them.

use ipip_abi::{Addr, Mac};

/// An IPv4 packet with whatever follows it in its frame. It has at least 20 bytes; nothing else is certain.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a>(&'a [u8]);

impl<'a> Ipv4<'a> {
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= 20).then_some(Self(bytes))
    }

    /// Whether a receiver takes the packet (RFC 1122, 3.2.1): version, lengths and checksum are right.
    pub fn is_valid(&self) -> bool {
        self.version() == 4
            && self.header_len() >= 20
            && self.total_len() >= self.header_len()
            && self.total_len() <= self.0.len()
            && self.checksum_is_correct()
    }

    pub fn version(&self) -> u8 {
        self.0[0] >> 4
    }

    pub fn header_len(&self) -> usize {
        usize::from(self.0[0] & 15) * 4
    }

    pub fn tos(&self) -> u8 {
        self.0[1]
    }

    pub fn ecn(&self) -> u8 {
        self.0[1] & 3
    }

    /// Its length. The header of a BIG TCP packet says 0, because it cannot state more than 65,535 (decision 0008).
    pub fn total_len(&self) -> usize {
        match u16::from_be_bytes([self.0[2], self.0[3]]) {
            0 if self.0.len() > usize::from(u16::MAX) => self.0.len(),
            len => len.into(),
        }
    }

    fn fragment(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }

    pub fn is_fragment(&self) -> bool {
        self.fragment() & 0x3fff != 0
    }

    pub fn is_later_fragment(&self) -> bool {
        self.fragment() & 0x1fff != 0
    }

    pub fn ttl(&self) -> u8 {
        self.0[8]
    }

    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    pub fn source(&self) -> Addr {
        Addr([self.0[12], self.0[13], self.0[14], self.0[15]])
    }

    pub fn destination(&self) -> Addr {
        Addr([self.0[16], self.0[17], self.0[18], self.0[19]])
    }

    pub fn checksum_is_correct(&self) -> bool {
        self.0
            .get(..self.header_len())
            .is_some_and(|header| sum(header) == 0xffff)
    }

    /// Bytes that arrived.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All bytes that arrived.
    pub fn all(&self) -> &'a [u8] {
        self.0
    }

    /// The payload of a valid packet.
    pub fn payload(&self) -> &'a [u8] {
        &self.0[self.header_len()..self.total_len()]
    }

    /// What follows a valid packet in its frame.
    pub fn after(&self) -> &'a [u8] {
        &self.0[self.total_len()..]
    }

    /// The destination port of a datagram, unless it is a later fragment or too short.
    pub fn udp_destination(&self) -> Option<u16> {
        if self.protocol() != 17 || self.is_later_fragment() {
            return None;
        }
        let end = self.total_len().min(self.0.len());
        let bytes = self.0.get(self.header_len()..end)?;
        Some(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))
    }
}

/// The sum of RFC 1071: 0xffff for a header with its checksum.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Writes the right checksum into a header of `len` bytes.
pub fn fill_checksum(packet: &mut [u8], len: usize) {
    packet[10..12].fill(0);
    let sum = !sum(&packet[..len.min(packet.len())]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The packet with another TTL and the right checksum.
pub fn with_ttl(packet: &[u8], ttl: u8) -> Vec<u8> {
    changed(packet, 8, ttl)
}

/// The packet with another ECN field (RFC 3168) and the right checksum.
pub fn with_ecn(packet: &[u8], ecn: u8) -> Vec<u8> {
    changed(packet, 1, packet[1] & !3 | ecn)
}

fn changed(packet: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[at] != value {
        packet[at] = value;
        let len = usize::from(packet[0] & 15) * 4;
        fill_checksum(&mut packet, len);
    }
    packet
}

/// An ARP packet with whatever follows it in its frame.
#[derive(Clone, Copy, Debug)]
pub struct Arp<'a>(&'a [u8]);

impl<'a> Arp<'a> {
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= 28).then_some(Self(bytes))
    }

    pub fn is_ipv4_over_ethernet(&self) -> bool {
        self.0[..6] == [0, 1, 8, 0, 6, 4]
    }

    pub fn operation(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }

    pub fn sender_mac(&self) -> Mac {
        Mac(self.0[8..14].try_into().expect("6 bytes"))
    }

    pub fn sender_is_a_station(&self) -> bool {
        self.0[8] & 1 == 0 && self.0[8..14] != [0; 6]
    }

    pub fn sender(&self) -> Addr {
        Addr(self.0[14..18].try_into().expect("4 bytes"))
    }

    pub fn target(&self) -> Addr {
        Addr(self.0[24..28].try_into().expect("4 bytes"))
    }

    /// The answer that names `mac`, with the same bytes after it.
    pub fn answer(&self, mac: Mac) -> Vec<u8> {
        let (sender, target) = (&self.0[8..18], &self.0[24..28]);
        let mut answer = [&self.0[..7], &[2], &mac.0, target, sender].concat();
        answer.extend(&self.0[28..]);
        answer
    }
}
