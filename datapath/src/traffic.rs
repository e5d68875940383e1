//! The traffic of all peers at once: an agent looks at it twice a second, and a system call for each of thousands of peers would
//! cost more than all that it does otherwise.

use crate::{
    Error, Pins,
    maps::{Maps, failed, sum_of_cpus},
};
use aya::{
    maps::{MapData, MapError},
    util::nr_cpus,
};
use ipip_abi::{PeerTraffic, maps};
use nix::{errno::Errno, libc};
use std::{
    mem::size_of_val,
    os::fd::{AsFd, AsRawFd},
};

/// Peers that are read at once.
const BATCH: usize = 256;
/// `BPF_MAP_LOOKUP_BATCH` of linux/bpf.h.
const LOOKUP_BATCH: libc::c_long = 24;

/// Reads the traffic of all peers.
pub struct AllTraffic {
    map: MapData,
    cpus: usize,
    /// The entries of one batch, each for all CPUs.
    values: Vec<PeerTraffic>,
    /// Whether the kernel has refused to read several at once: before Linux 5.13 it does for this kind of map.
    is_refused: bool,
}

/// `struct { … } batch` of `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl AllTraffic {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// There is no datapath, or the kernel does not say how many CPUs there are.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        let map = MapData::from_pin(pins.map(&maps::PEER_TRAFFIC));
        let map = map.map_err(failed("open", &maps::PEER_TRAFFIC))?;
        let cpus = nr_cpus().map_err(|(action, source)| Error::Io {
            action: "read",
            path: action.into(),
            source,
        })?;
        Ok(Self {
            map,
            cpus,
            values: vec![PeerTraffic::default(); BATCH * cpus],
            is_refused: false,
        })
    }

    /// The traffic of the peers with the indexes up to `last`, summed over the CPUs, by their indexes.
    ///
    /// # Errors
    /// The kernel does not return the entries.
    pub fn read(&mut self, maps: &Maps, last: u16) -> Result<Vec<PeerTraffic>, Error> {
        let peers = usize::from(last) + 1;
        let mut all = Vec::with_capacity(peers);
        let mut position = None;
        while all.len() < peers && !self.is_refused {
            let count = BATCH.min(peers - all.len());
            match self.lookup(&mut position, count) {
                Ok(found) => {
                    let values = self.values.chunks_exact(self.cpus).take(found);
                    all.extend(values.map(sum_of_cpus));
                }
                Err(Errno::EINVAL | Errno::ENOTSUP | Errno::UnknownErrno) => {
                    self.is_refused = true;
                }
                Err(error) => {
                    let source = MapError::SyscallError(aya::sys::SyscallError {
                        call: "bpf_map_lookup_batch",
                        io_error: error.into(),
                    });
                    return Err(failed("read", &maps::PEER_TRAFFIC)(source));
                }
            }
        }
        for peer in all.len()..peers {
            all.push(maps.traffic(peer as u16)?);
        }
        Ok(all)
    }

    /// Reads `count` entries after `position` into `values`, and returns how many there were.
    fn lookup(&mut self, position: &mut Option<u32>, count: usize) -> Result<usize, Errno> {
        let mut next = 0_u32;
        let mut keys = [0_u32; BATCH];
        let mut attr = BatchAttr {
            in_batch: position
                .as_ref()
                .map_or(0, |it| std::ptr::from_ref(it).addr() as u64),
            out_batch: (&raw mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: self.values.as_mut_ptr().addr() as u64,
            count: count as u32,
            map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `attr`, writes at most `count` keys and values of all possible CPUs, and one position: the
        // buffers have this room, and live until the call has returned.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                LOOKUP_BATCH,
                &raw mut attr,
                size_of_val(&attr),
            )
        };
        // The end of the map is an error, too.
        match Errno::result(result) {
            Ok(_) | Err(Errno::ENOENT) => {
                *position = Some(next);
                Ok(attr.count as usize)
            }
            Err(error) => Err(error),
        }
    }
}
