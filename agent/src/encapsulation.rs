//! Encapsulations by the words that people write.

use ipip_abi::{Encapsulation, IPIP_OVERHEAD, UDP_OVERHEAD};

/// The encapsulation that `text` names.
pub fn parse(text: &str) -> Option<Encapsulation> {
    match text {
        "ipip" => Some(Encapsulation::Ipip),
        "udp" => Some(Encapsulation::Udp),
        "direct" => Some(Encapsulation::Direct),
        _ => None,
    }
}

/// The word for `encapsulation`.
pub fn word(encapsulation: Encapsulation) -> &'static str {
    match encapsulation {
        Encapsulation::None => "none",
        Encapsulation::Ipip => "ipip",
        Encapsulation::Udp => "udp",
        Encapsulation::Direct => "direct",
    }
}

/// Bytes that `encapsulation` adds to a packet.
pub fn overhead(encapsulation: Encapsulation) -> u16 {
    match encapsulation {
        Encapsulation::None | Encapsulation::Direct => 0,
        Encapsulation::Ipip => IPIP_OVERHEAD,
        Encapsulation::Udp => UDP_OVERHEAD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_names_the_encapsulation_it_is_the_word_for() {
        for encapsulation in [
            Encapsulation::Ipip,
            Encapsulation::Udp,
            Encapsulation::Direct,
        ] {
            assert_eq!(parse(word(encapsulation)), Some(encapsulation));
        }
        assert_eq!(parse("none"), None);
    }
}
