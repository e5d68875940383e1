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
use std::{collections::HashMap, fmt, str::FromStr};
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
    own: Option<(String, PrivateKey)>,
    derived: HashMap<(String, PublicKey), Option<ProbeKey>>,
}

impl PublicKey {
    /// The identity in probes of the node of this name with this key.
    pub fn identity(&self, node: &str) -> [u8; 8] {
        let mut identity = [0; 8];
        let digest = Sha256::new().chain_update(self.0).chain_update(node);
        identity.copy_from_slice(&digest.finalize()[..8]);
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

    /// The secret of probes between this node, `own`, and the node `peer` with its key. The names are part of it, so a node
    /// that publishes the key of another one harms only itself. `None` if everybody derives the same secret with the key.
    fn secret_with(&self, own: &str, peer: &str, key: PublicKey) -> Option<ProbeKey> {
        let shared = self.secret.diffie_hellman(&key.0.into());
        if own == peer || !shared.was_contributory() {
            return None;
        }
        let ends = [(own, self.public), (peer, key)];
        let [first, last] = if own < peer { ends } else { [ends[1], ends[0]] };
        let derived = Hkdf::<Sha256>::new(Some(VERSION), shared.as_bytes());
        let mut bytes = [0; 16];
        // A name has no line break.
        let info: [&[u8]; 5] = [
            &first.1.0,
            &last.1.0,
            first.0.as_bytes(),
            b"\n",
            last.0.as_bytes(),
        ];
        derived.expand_multi_info(&info, &mut bytes).ok()?;
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
    /// The secrets of the node of this name with this key; without a key it has none.
    pub fn new(own: &str, key: Option<PrivateKey>) -> Self {
        Self {
            own: key.map(|key| (own.to_owned(), key)),
            derived: HashMap::new(),
        }
    }

    /// The own public key.
    pub fn public(&self) -> Option<PublicKey> {
        self.own.as_ref().map(|(_, key)| key.public)
    }

    /// Derives the secrets with these peers, by name and key, and forgets all others.
    pub fn set_peers<'a>(&mut self, peers: impl IntoIterator<Item = (&'a str, PublicKey)>) {
        let Some((own, private)) = &self.own else {
            return;
        };
        let mut before = std::mem::take(&mut self.derived);
        for (peer, key) in peers {
            let peer = (peer.to_owned(), key);
            let secret = before.remove(&peer);
            let secret = secret.unwrap_or_else(|| private.secret_with(own, &peer.0, key));
            self.derived.insert(peer, secret);
        }
    }

    /// What authenticates the probes with this peer, without its address, if there is a secret.
    pub fn with(&self, peer: &str, key: PublicKey) -> Option<ProbeSecret> {
        let (own, private) = self.own.as_ref()?;
        Some(ProbeSecret {
            key: (*self.derived.get(&(peer.to_owned(), key))?)?,
            own: private.public.identity(own),
            peer: key.identity(peer),
            ..ProbeSecret::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from([seed; 32])
    }

    #[test]
    fn both_nodes_derive_one_secret_and_each_pair_has_another_one() {
        let nodes = [
            ("a", key(1)),
            ("b", key(2)),
            ("c", key(3)),
            ("copy of c", key(3)),
        ];
        let mut seen = HashSet::new();
        for (n, (a, key_of_a)) in nodes.iter().enumerate() {
            for (b, key_of_b) in &nodes[n + 1..] {
                let secret = key_of_a.secret_with(a, b, key_of_b.public()).unwrap();
                let other = key_of_b.secret_with(b, a, key_of_a.public());
                assert_eq!(other, Some(secret));
                assert!(seen.insert(secret));
            }
        }
        assert_eq!(seen.len(), 6);
        assert_eq!(key(1).secret_with("a", "a", key(1).public()), None);
    }

    /// A change of the derivation needs another `VERSION`, because nodes of several versions run together.
    #[test]
    fn the_derivation_is_the_recorded_one() {
        let secret = key(1).secret_with("a1", "b1", key(2).public());
        let words = [0xbb53_8930_cbe5_da93, 0x1ec1_383d_4708_a0f7];
        assert_eq!(secret, Some(words));
        let identity = [0xe1, 0x66, 0x8c, 0xcb, 0x8c, 0x1e, 0x16, 0x64];
        assert_eq!(key(1).public().identity("a1"), identity);
    }

    #[test]
    fn keys_with_which_everybody_derives_the_same_secret_give_none() {
        let mut one = [0; 32];
        one[0] = 1;
        // An element of order 8.
        let order_8 = "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=";
        for low_order in [[0; 32].into(), one.into(), order_8.parse().unwrap()] {
            assert_eq!(key(1).secret_with("a", "b", low_order), None, "{low_order}");
        }
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
        let mut secrets = Secrets::new("a", Some(a.clone()));
        secrets.set_peers([("b", b.public()), ("c", c.public())]);
        let expected = ProbeSecret {
            key: b.secret_with("b", "a", a.public()).unwrap(),
            own: a.public().identity("a"),
            peer: b.public().identity("b"),
            ..ProbeSecret::default()
        };
        assert_eq!(secrets.with("b", b.public()), Some(expected));
        assert_eq!(secrets.with("c", b.public()), None);
        secrets.set_peers([("c", c.public())]);
        assert_eq!(secrets.with("b", b.public()), None);
        assert!(secrets.with("c", c.public()).is_some());

        let mut none = Secrets::new("a", None);
        none.set_peers([("b", b.public())]);
        assert_eq!(none.with("b", b.public()), None);
    }

    #[test]
    fn the_private_key_is_in_no_debug_text() {
        let secrets = Secrets::new("a", Some(key(7)));
        let text = format!("{:?} {secrets:?}", key(7));
        assert!(!text.contains("7, 7"), "{text}");
    }
}
