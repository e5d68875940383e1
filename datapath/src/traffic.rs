//! The traffic of all peers at once: an agent looks at it twice a second.

use crate::{
    Error, batch,
    maps::{Maps, failed, sum_of_cpus},
};
use aya::{maps::IterableMap, util::nr_cpus};
use ipip_abi::{PeerTraffic, maps};

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
        let found =
            batch::lookup::<u32, PeerTraffic>(self.peer_traffic.map(), cpus, usize::from(last) + 1)
                .map_err(failed("read", &maps::PEER_TRAFFIC))?;
        match found {
            Some((_, values)) => Ok(values.chunks_exact(cpus).map(sum_of_cpus).collect()),
            // Before Linux 5.13, the kernel reads only single entries of this kind of map.
            None => (0..=last).map(|peer| self.traffic(peer)).collect(),
        }
    }
}
