//! The keys of probes: each node has a pair for X25519, and two nodes derive the secret of their probes from it.
//!
//! A pair lasts at most until the next boot. A probe carries the prober's clock, which must never return to an earlier value
//! under the same secret, and the clock begins again at each boot.

mod file;

pub use file::{Error, KEY_FILE, host_folder, load, load_or_create, store};

use base64::{Engine, engine::general_purpose::STANDARD};
use hkdf::Hkdf;
use ipip_abi::probe::{ProbeKey, ProbeSecret};
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
};
use x25519_dalek::StaticSecret;

/// The version of the derivation. Nodes of another version derive other secrets.
const VERSION: &[u8] = b"ipip probes 1";

/// The public key of a node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PublicKey([u8; 32]);

/// The text is not a public key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not 32 bytes in base64")]
pub struct NotAKey;

/// The private key of this node, with its public key.
#[derive(Clone)]
pub struct PrivateKey {
    secret: StaticSecret,
    public: PublicKey,
}

/// The secrets of this node's probes with its peers. Each is derived once, because thousands of them take a while.
#[derive(Clone, Default)]
pub struct Secrets {
    own: Option<PrivateKey>,
    derived: HashMap<PublicKey, Option<ProbeKey>>,
}

impl PublicKey {
    /// The name of the node with this key in probes.
    pub fn identity(&self) -> [u8; 8] {
        let mut identity = [0; 8];
        identity.copy_from_slice(&Sha256::digest(self.0)[..8]);
        identity
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = STANDARD.decode(text).map_err(|_| NotAKey)?;
        bytes.try_into().map(Self).map_err(|_| NotAKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl PrivateKey {
    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The secret of probes between this node and the one with the key `peer`. `None` if that is no key of another node:
    /// an own one, or one with which everybody derives the same secret.
    fn secret_with(&self, peer: PublicKey) -> Option<ProbeKey> {
        let shared = self.secret.diffie_hellman(&peer.0.into());
        if peer == self.public || !shared.was_contributory() {
            return None;
        }
        let first = self.public.min(peer);
        let last = self.public.max(peer);
        let derived = Hkdf::<Sha256>::new(Some(VERSION), shared.as_bytes());
        let mut bytes = [0; 16];
        derived
            .expand_multi_info(&[&first.0, &last.0], &mut bytes)
            .ok()?;
        let (words, _) = bytes.as_chunks();
        let key = [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])];
        // Zero means that there is no secret.
        (key != [0; 2]).then_some(key)
    }
}

impl From<[u8; 32]> for PrivateKey {
    fn from(bytes: [u8; 32]) -> Self {
        let secret = StaticSecret::from(bytes);
        let public = PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes());
        Self { secret, public }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({:?}, {} peers)", self.own, self.derived.len())
    }
}

impl Secrets {
    /// The secrets of the node with this key; without a key it has none.
    pub fn new(own: Option<PrivateKey>) -> Self {
        Self {
            own,
            derived: HashMap::new(),
        }
    }

    /// Derives the secrets with these peers, and forgets all others.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = PublicKey>) {
        let Some(own) = &self.own else {
            return;
        };
        let peers: HashSet<PublicKey> = peers.into_iter().collect();
        self.derived.retain(|key, _| peers.contains(key));
        for peer in peers {
            let entry = self.derived.entry(peer);
            entry.or_insert_with(|| own.secret_with(peer));
        }
    }

    /// What authenticates the probes with this peer, without its address, if there is a secret.
    pub fn with(&self, peer: PublicKey) -> Option<ProbeSecret> {
        Some(ProbeSecret {
            key: (*self.derived.get(&peer)?)?,
            own: self.own.as_ref()?.public.identity(),
            peer: peer.identity(),
            ..ProbeSecret::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from([seed; 32])
    }

    #[test]
    fn both_nodes_derive_one_secret_and_each_pair_has_another_one() {
        let keys = [1, 2, 3].map(key);
        let mut seen = HashSet::new();
        for (n, a) in keys.iter().enumerate() {
            for b in &keys[n + 1..] {
                let secret = a.secret_with(b.public()).unwrap();
                assert_eq!(b.secret_with(a.public()), Some(secret));
                assert!(seen.insert(secret));
            }
        }
        assert_eq!(seen.len(), 3);
    }

    /// A change of the derivation needs another `VERSION`, because nodes of several versions run together.
    #[test]
    fn the_derivation_is_the_recorded_one() {
        let secret = key(1).secret_with(key(2).public());
        let words = [0xadc5_b523_a820_5507, 0x11a3_6618_cfdd_524b];
        assert_eq!(secret, Some(words));
        let identity = [0x1a, 0x92, 0xf2, 0x38, 0x52, 0xdc, 0x90, 0x8d];
        assert_eq!(key(1).public().identity(), identity);
    }

    #[test]
    fn keys_with_which_everybody_derives_the_same_secret_and_the_own_key_give_none() {
        let mut one = [0; 32];
        one[0] = 1;
        // An element of order 8.
        let order_8 = "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=";
        for low_order in [[0; 32].into(), one.into(), order_8.parse().unwrap()] {
            assert_eq!(key(1).secret_with(low_order), None, "{low_order}");
        }
        assert_eq!(key(1).secret_with(key(1).public()), None);
    }

    #[test]
    fn a_key_is_44_characters_of_base64_in_one_form_only() {
        let text = key(1).public().to_string();
        assert_eq!(text.len(), 44);
        assert_eq!(text.parse(), Ok(key(1).public()));
        let unpadded = text.trim_end_matches('=');
        // The last character of the other form has bits that belong to no byte.
        let other_form = format!("{}B=", &"A".repeat(42));
        for wrong in ["", unpadded, &other_form, &text[4..], "key"] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(NotAKey), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_those_of_the_current_peers_and_name_both_nodes() {
        let (a, b, c) = (key(1), key(2), key(3));
        let mut secrets = Secrets::new(Some(a.clone()));
        secrets.set_peers([b.public(), c.public()]);
        let expected = ProbeSecret {
            key: b.secret_with(a.public()).unwrap(),
            own: a.public().identity(),
            peer: b.public().identity(),
            ..ProbeSecret::default()
        };
        assert_eq!(secrets.with(b.public()), Some(expected));
        secrets.set_peers([c.public()]);
        assert_eq!(secrets.with(b.public()), None);
        assert!(secrets.with(c.public()).is_some());

        let mut none = Secrets::new(None);
        none.set_peers([b.public()]);
        assert_eq!(none.with(b.public()), None);
    }

    #[test]
    fn the_private_key_is_in_no_debug_text() {
        let secrets = Secrets::new(Some(key(7)));
        let text = format!("{:?} {secrets:?}", key(7));
        assert!(!text.contains("7, 7"), "{text}");
    }
}
