//! Encapsulations by the words that people write.

use ipip_abi::Encapsulation;

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
