//! Replaces the datapath of other ABI versions, so that no interface has the programs of two versions.
//!
//! Pods are carried over: their entries, and the programs on their interfaces. The agent fills all other maps; until it
//! has reconciled, packets between nodes are lost.

use crate::{CachedMap, Error, Pins, Programs, maps::failed, open_pods, remove::remove_version};
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use ipip_abi::{Addr, Pod, maps};
use nix::{fcntl::FlockArg, net::if_::if_nametoindex};

/// Takes over from every other ABI version below the same root. The programs and maps of `pins` must be pinned already.
/// If this process is killed halfway, the next call completes the work.
///
/// # Errors
/// The first error of a version. Its programs then stay attached.
pub(crate) fn take_over(pins: &Pins, programs: &mut Programs) -> Result<(), Error> {
    for other in pins.versions()? {
        if other != *pins {
            // ADD of the other version's plugin holds this lock.
            let _lock = other.lock(FlockArg::LockExclusive)?;
            carry_pods(&other, &mut open_pods(pins)?)?;
            attach_again(&other, programs)?;
            remove_version(&other)?;
        }
    }
    Ok(())
}

/// Copies the entries of `PODS`, if their layout did not change.
fn carry_pods(from: &Pins, to: &mut CachedMap<Pod>) -> Result<(), Error> {
    let path = from.maps().join(maps::PODS.name);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path).map_err(failed("open", &maps::PODS))?;
    if (info.key_size(), info.value_size()) != (maps::PODS.key_size, maps::PODS.value_size) {
        return Ok(());
    }
    let from: HashMap<MapData, Addr, Pod> = MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .and_then(HashMap::try_from)
        .map_err(failed("open", &maps::PODS))?;
    for entry in from.iter() {
        let (address, pod) = entry.map_err(failed("read", &maps::PODS))?;
        // An existing entry of this version is newer.
        if let Err(MapError::KeyNotFound) = to.get(&address, 0) {
            to.insert(address, pod, 0)
                .map_err(failed("write", &maps::PODS))?;
        }
    }
    Ok(())
}

/// Attaches this version's programs to the interfaces that the other version's pins name, in the mode of each pin. A
/// pin whose program this version does not have is skipped. A filter on clsact is replaced in place, because all
/// versions use the same handle. A TCX link is added before the other one ends.
fn attach_again(other: &Pins, programs: &mut Programs) -> Result<(), Error> {
    for pin in other.link_pins()? {
        if if_nametoindex(pin.ifname.as_str()).is_ok() {
            programs.attach_as(&pin)?;
        }
    }
    Ok(())
}
