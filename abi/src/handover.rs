//! The handover contract: the part of the pinned state that every version reads and writes, so that one version takes
//! over from another one, newer or older, without losing a packet. `docs/decisions/0043` explains it.
//!
//! Below the pin root, outside of the folders of the versions:
//!
//! - `current`: a symbolic link to the folder of the version whose programs are attached, `v<ABI version>`.
//! - `links/`: one pin for each hook that has a program, `<interface>@<program>`. A TCX link is pinned itself;
//!   `<interface>@<program>@clsact` pins the program of a clsact filter. A program keeps its name and hook in every
//!   version, the filter its priority and handle. `%` stands for a dot.
//! - `shared/`: the maps of [`maps::SHARED`](crate::maps::SHARED). Their names, kinds, keys and values never change; a
//!   version that needs another layout adds a map of another name and keeps writing this one.
//!
//! A version writes only what it knows: it keeps fields and bits that it does not know, and ignores them. A process of a
//! version that is not the current one adds no pod and attaches no program.

use crate::{Addr, Mac, Pod};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The name of the symbolic link to the current version's folder.
pub const CURRENT: &str = "current";
/// The folder of the links.
pub const LINKS: &str = "links";
/// The folder of the shared maps.
pub const SHARED: &str = "shared";

/// IPv4, as the family of an address (`AF_INET` is not used: its value differs between systems).
pub const FAMILY_IPV4: u8 = 4;

/// A pod's address with its family: a key of `POD_RECORDS`.
#[derive(
    Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(C)]
pub struct PodKey {
    /// [`FAMILY_IPV4`]. Keys of other families are kept and ignored.
    pub family: u8,
    /// Zero.
    pub _pad: [u8; 3],
    /// The address in network byte order; an IPv4 address has the first four bytes, and zeros follow.
    pub address: [u8; 16],
}

// SAFETY: `IntoBytes` and `FromBytes` prove that every byte is initialised and that every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for PodKey {}

impl PodKey {
    /// The address, if it is one of IPv4.
    pub fn ipv4(self) -> Option<Addr> {
        let [a, b, c, d, ..] = self.address;
        (self.family == FAMILY_IPV4).then_some(Addr([a, b, c, d]))
    }
}

impl From<Addr> for PodKey {
    fn from(Addr(bytes): Addr) -> Self {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&bytes);
        Self {
            family: FAMILY_IPV4,
            _pad: [0; 3],
            address,
        }
    }
}

/// What every version must know of a pod: a value of `POD_RECORDS`. A sequence of fields, each a tag, a length and as many
/// bytes; tag 0 ends it. Integers are in network byte order. Tags are never reused, and a field never changes its
/// meaning.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct PodRecord([u8; PodRecord::LEN]);

// SAFETY: `IntoBytes` and `FromBytes` prove that every byte is initialised and that every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for PodRecord {}

/// Interface index of the host side of the pod's veth: 4 bytes.
const IFINDEX: u8 = 1;
/// MAC of the pod's own interface: 6 bytes.
const MAC: u8 = 2;
/// MAC of the host side: 6 bytes.
const HOST_MAC: u8 = 3;
/// Bits, 4 bytes: [`FLAG_HOST_STACK`].
const FLAGS: u8 = 4;
/// In the build that tests use as the next version: a field that this version does not know.
#[cfg(feature = "next-abi")]
const OF_NEXT_ABI: u8 = 200;

/// All packets from and to the pod take the host stack.
const FLAG_HOST_STACK: u32 = 1;

impl PodRecord {
    /// Bytes of a record.
    pub const LEN: usize = 64;
    /// A record without fields.
    pub const EMPTY: Self = Self([0; Self::LEN]);

    /// The pod, if the record has every field that this version needs.
    pub fn pod(&self) -> Option<Pod> {
        let flags = self.number(FLAGS)?;
        Some(Pod {
            ifindex: self.number(IFINDEX)?,
            mac: Mac(self.field(MAC)?.try_into().ok()?),
            host_mac: Mac(self.field(HOST_MAC)?.try_into().ok()?),
            flags: if flags & FLAG_HOST_STACK != 0 {
                Pod::HOST_STACK
            } else {
                0
            },
        })
    }

    /// The record with the fields of `pod`. Fields and flags that this version does not know stay.
    ///
    /// Fields that do not fit are left out; those of this version always fit into an empty record.
    #[must_use]
    pub fn with(mut self, pod: &Pod) -> Self {
        let unknown = self.number(FLAGS).unwrap_or(0) & !FLAG_HOST_STACK;
        let flags = if pod.takes_host_stack() {
            unknown | FLAG_HOST_STACK
        } else {
            unknown
        };
        self.set(IFINDEX, &pod.ifindex.to_be_bytes());
        self.set(MAC, &pod.mac.0);
        self.set(HOST_MAC, &pod.host_mac.0);
        self.set(FLAGS, &flags.to_be_bytes());
        #[cfg(feature = "next-abi")]
        self.set(OF_NEXT_ABI, b"next");
        self
    }

    /// The bytes of the first field with this tag.
    pub fn field(&self, tag: u8) -> Option<&[u8]> {
        let (start, len) = self.find(tag)?;
        self.0.get(start..start + len)
    }

    fn number(&self, tag: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.field(tag)?.try_into().ok()?))
    }

    /// Replaces a field of the same length, or appends one.
    fn set(&mut self, tag: u8, bytes: &[u8]) {
        let start = match self.find(tag) {
            Some((start, len)) if len == bytes.len() => start,
            // A field of another length is not of this contract: it stays and hides ours.
            Some(_) => return,
            None => {
                let end = self.end();
                // The tag 0 must fit behind it.
                if end + 2 + bytes.len() >= Self::LEN {
                    return;
                }
                self.0[end] = tag;
                self.0[end + 1] = bytes.len() as u8;
                end + 2
            }
        };
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Where the bytes of the first field with this tag begin, and how many there are.
    fn find(&self, tag: u8) -> Option<(usize, usize)> {
        let found = self.fields().find(|(found, _, _)| *found == tag);
        found.map(|(_, start, len)| (start, len))
    }

    /// Where the tag 0 is.
    fn end(&self) -> usize {
        self.fields()
            .map(|(_, start, len)| start + len)
            .last()
            .unwrap_or(0)
    }

    /// Tag, start and length of each field. A field that exceeds the record ends the sequence.
    fn fields(&self) -> impl Iterator<Item = (u8, usize, usize)> {
        let mut at = 0;
        core::iter::from_fn(move || {
            let (tag, len) = (*self.0.get(at)?, usize::from(*self.0.get(at + 1)?));
            let start = at + 2;
            if tag == 0 || start + len > Self::LEN {
                return None;
            }
            at = start + len;
            Some((tag, start, len))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Pod = Pod {
        ifindex: 7,
        mac: Mac([2, 0, 0, 0, 0, 1]),
        host_mac: Mac([2, 0, 0, 0, 0, 2]),
        flags: Pod::HOST_STACK,
    };

    /// These bytes are read by every version: they never change.
    #[cfg(not(feature = "next-abi"))]
    #[test]
    fn a_record_has_the_bytes_that_every_version_reads() {
        let mut bytes = [0; PodRecord::LEN];
        bytes[..28].copy_from_slice(&[
            1, 4, 0, 0, 0, 7, 2, 6, 2, 0, 0, 0, 0, 1, 3, 6, 2, 0, 0, 0, 0, 2, 4, 4, 0, 0, 0, 1,
        ]);
        assert_eq!(PodRecord::EMPTY.with(&POD), PodRecord(bytes));
        assert_eq!(PodRecord(bytes).pod(), Some(POD));
        let key = PodKey::from(Addr([10, 42, 1, 2]));
        assert_eq!(
            key.as_bytes(),
            [4, 0, 0, 0, 10, 42, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(key.ipv4(), Some(Addr([10, 42, 1, 2])));
        assert_eq!(PodKey { family: 6, ..key }.ipv4(), None);
    }

    #[test]
    fn fields_and_flags_of_a_newer_version_are_kept_and_ignored() {
        let mut newer = PodRecord::EMPTY;
        newer.set(199, b"newer");
        newer = newer.with(&POD);
        newer.set(FLAGS, &0x8000_0001_u32.to_be_bytes());
        assert_eq!(newer.pod(), Some(POD));

        let moved = Pod {
            mac: Mac([2, 0, 0, 0, 0, 9]),
            flags: 0,
            ..POD
        };
        let changed = newer.with(&moved);
        assert_eq!(changed.pod(), Some(moved));
        assert_eq!(changed.field(199), Some(&b"newer"[..]));
        assert_eq!(changed.number(FLAGS), Some(0x8000_0000));
        assert_eq!(changed.end(), newer.end());
    }

    #[test]
    fn a_record_that_lacks_a_field_or_is_damaged_is_no_pod() {
        assert_eq!(PodRecord::EMPTY.pod(), None);
        let mut cut = PodRecord::EMPTY.with(&POD);
        cut.0[1] = 255;
        assert_eq!(cut.pod(), None);
        for byte in 0..=255 {
            let damaged = PodRecord([byte; PodRecord::LEN]);
            assert_eq!(damaged.with(&POD).0.len(), PodRecord::LEN);
            let _ = damaged.pod();
        }
    }

    #[test]
    fn a_field_that_does_not_fit_is_left_out() {
        let mut full = PodRecord::EMPTY.with(&POD);
        full.set(100, &[1; 40]);
        assert_eq!(full.field(100), None);
        assert_eq!(full.pod(), Some(POD));
    }
}
