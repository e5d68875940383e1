//! Writes the maps of probes.

use aya::maps::MapError;
use ipip_abi::probe::{ProbeSecret, ProbeState, candidate_indexes};
use ipip_datapath::Maps;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Replaces the secret of a peer. If the keys are others than before, what is remembered of earlier probes is forgotten, without
/// a secret meanwhile. No answer to a probe of before is then taken: its time has passed.
pub fn set_secret(maps: &mut Maps, id: u16, secret: &ProbeSecret) -> Result<(), MapError> {
    let keys = |it: &ProbeSecret| (it.key, it.own, it.peer);
    let before = maps.probe_secrets.get(&id.into(), 0)?;
    if secret.is_set() && keys(&before) != keys(secret) {
        maps.probe_secrets
            .set(id.into(), ProbeSecret::default(), 0)?;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let state = ProbeState {
            answered: now.as_nanos() as u64,
            ..ProbeState::default()
        };
        for index in candidate_indexes(id) {
            maps.probe_states.set(index, state, 0)?;
        }
    }
    maps.probe_secrets.set(id.into(), secret, 0)
}
