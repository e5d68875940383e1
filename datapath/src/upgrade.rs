//! Replaces the datapath of other ABI versions, so that no interface has the programs of two.
//!
//! The pods are carried over: their entries, and the programs on their interfaces. All other maps are filled by the
//! agent, so until it has reconciled, packets between nodes are lost.

use crate::{CachedMap, Error, Pins, Programs, maps::failed, open_pods, remove::remove_version};
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use ipip_abi::{Addr, Pod, maps};
use nix::{fcntl::FlockArg, net::if_::if_nametoindex};

/// Takes over from every other ABI version below the root of `pins`, whose own programs and maps are pinned already.
/// If this process dies halfway, the next call completes the work.
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
        // An entry of this version is newer.
        if let Err(MapError::KeyNotFound) = to.get(&address, 0) {
            to.insert(address, pod, 0)
                .map_err(failed("write", &maps::PODS))?;
        }
    }
    Ok(())
}

/// Attaches the programs of this version wherever those of the other one are, in the same way. A filter on clsact
/// is replaced in place, because all versions use the same handle. A TCX link is added before the other one ends.
fn attach_again(other: &Pins, programs: &mut Programs) -> Result<(), Error> {
    for pin in other.link_pins()? {
        if if_nametoindex(pin.ifname.as_str()).is_ok() {
            programs.attach_as(&pin)?;
        }
    }
    Ok(())
}
