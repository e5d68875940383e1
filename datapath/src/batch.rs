//! Many entries of a map by one system call. An agent reads the arrays of all peers again and again: a system call for each entry
//! of thousands of peers would cost more than all that it does otherwise.

use aya::{
    Pod,
    maps::{Array, IterableMap, MapData, MapError},
    sys::SyscallError,
};
use nix::{errno::Errno, libc};
use std::{
    mem::size_of_val,
    os::fd::{AsFd, AsRawFd},
};

/// Entries that are read at once.
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

/// Where the kernel continues: a key or the number of a bucket.
type Position = [u64; 2];

/// Keys, and the values of all of them, one after the other.
type Entries<K, V> = (Vec<K>, Vec<V>);

/// The first `count` values of an array, or all if there are fewer.
///
/// # Errors
/// The kernel's.
pub fn first_values<V: Pod>(map: &Array<MapData, V>, count: u32) -> Result<Vec<V>, MapError> {
    match lookup::<u32, V>(map.map(), 1, count as usize)? {
        Some((_, values)) => Ok(values),
        None => map.iter().take(count as usize).collect(),
    }
}

/// All entries of a map that has one value for each key, in no particular order. While the map changes, an entry may come twice.
/// `one_by_one` reads them on kernels that do not
/// know batches of this kind of map.
pub(crate) fn entries<K: Pod, V: Pod, I>(
    map: &impl IterableMap<K, V>,
    one_by_one: impl FnOnce() -> I,
) -> Result<Vec<(K, V)>, MapError>
where
    I: Iterator<Item = Result<(K, V), MapError>>,
{
    // A map that changes meanwhile can start again.
    let limit = map.map().info()?.max_entries();
    match lookup(map.map(), 1, limit as usize)? {
        Some((keys, values)) => Ok(keys.into_iter().zip(values).collect()),
        None => one_by_one().collect(),
    }
}

/// The first `limit` entries of a map that has `values_per_key` values for each key; `None` if the kernel does not know batches of
/// this kind of map.
pub(crate) fn lookup<K: Pod, V: Pod>(
    map: &MapData,
    values_per_key: usize,
    limit: usize,
) -> Result<Option<Entries<K, V>>, MapError> {
    const { assert!(size_of::<K>() <= size_of::<Position>()) };
    let (mut keys, mut values) = (Vec::<K>::new(), Vec::<V>::new());
    let mut position: Option<Position> = None;
    while keys.len() < limit {
        let count = BATCH.min(limit - keys.len());
        keys.reserve(count);
        values.reserve(count * values_per_key);
        let mut next = Position::default();
        let mut attr = BatchAttr {
            in_batch: position
                .as_ref()
                .map_or(0, |it| std::ptr::from_ref(it).addr() as u64),
            out_batch: (&raw mut next).addr() as u64,
            keys: keys.spare_capacity_mut().as_mut_ptr().addr() as u64,
            values: values.spare_capacity_mut().as_mut_ptr().addr() as u64,
            count: count as u32,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `attr` and `position`, and writes at most `count` keys, their values, and one position: the
        // buffers have this room, and live until the call has returned.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                LOOKUP_BATCH,
                &raw mut attr,
                size_of_val(&attr),
            )
        };
        let is_end = match Errno::result(result) {
            Ok(_) => false,
            Err(Errno::ENOENT) => true,
            // `UnknownErrno` is ENOTSUPP of the kernel. ENOSPC: more entries than a batch share a bucket of a hash map.
            Err(Errno::EINVAL | Errno::ENOTSUP | Errno::UnknownErrno | Errno::ENOSPC) => {
                return Ok(None);
            }
            Err(error) => {
                let call = "bpf_map_lookup_batch";
                let io_error = error.into();
                return Err(SyscallError { call, io_error }.into());
            }
        };
        let found = attr.count as usize;
        // SAFETY: the kernel has written `found` keys and their values behind those of before; any bytes are valid ones.
        unsafe {
            keys.set_len(keys.len() + found);
            values.set_len(values.len() + found * values_per_key);
        }
        if is_end {
            break;
        }
        position = Some(next);
    }
    Ok(Some((keys, values)))
}
