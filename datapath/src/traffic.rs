//! The traffic of all peers at once: an agent looks at it twice a second, and a system call for each of thousands of peers would
//! cost more than all that it does otherwise.

use crate::{
    Error,
    maps::{Maps, failed, sum_of_cpus},
};
use aya::{maps::MapError, sys::SyscallError, util::nr_cpus};
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

impl Maps {
    /// The traffic of the peers with the indexes up to `last`, summed over the CPUs, by their indexes.
    ///
    /// # Errors
    /// [`Error::Map`] if the kernel does not return the entries, [`Error::Io`] if it does not say how many CPUs there are.
    pub fn traffic_up_to(&self, last: u16) -> Result<Vec<PeerTraffic>, Error> {
        let cpus = nr_cpus().map_err(|(action, source)| Error::Io {
            action: "read",
            path: action.into(),
            source,
        })?;
        let peers = usize::from(last) + 1;
        let mut all = Vec::with_capacity(peers);
        // The entries of one batch, each for all CPUs.
        let mut values = vec![PeerTraffic::default(); BATCH.min(peers) * cpus];
        let mut position = None;
        while all.len() < peers {
            let count = BATCH.min(peers - all.len());
            match self.lookup(&mut position, count, &mut values) {
                Ok(found) => {
                    let found = values.chunks_exact(cpus).take(found);
                    all.extend(found.map(sum_of_cpus));
                }
                // Before Linux 5.13, the kernel reads only single entries of this kind of map.
                Err(Errno::EINVAL | Errno::ENOTSUP | Errno::UnknownErrno) => break,
                Err(error) => {
                    let source = MapError::SyscallError(SyscallError {
                        call: "bpf_map_lookup_batch",
                        io_error: error.into(),
                    });
                    return Err(failed("read", &maps::PEER_TRAFFIC)(source));
                }
            }
        }
        for peer in all.len()..peers {
            all.push(self.traffic(peer as u16)?);
        }
        Ok(all)
    }

    /// Reads `count` entries after `position` into `values`, which have room for them on all CPUs, and returns how many there
    /// were.
    fn lookup(
        &self,
        position: &mut Option<u32>,
        count: usize,
        values: &mut [PeerTraffic],
    ) -> Result<usize, Errno> {
        let mut next = 0_u32;
        let mut keys = [0_u32; BATCH];
        let mut attr = BatchAttr {
            in_batch: position
                .as_ref()
                .map_or(0, |it| std::ptr::from_ref(it).addr() as u64),
            out_batch: (&raw mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: count as u32,
            map_fd: self.traffic_batches.fd().as_fd().as_raw_fd() as u32,
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
