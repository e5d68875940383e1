//! Shows the paths to peers to `ipipctl peers`: they change all the time, so they are written only when somebody asks.

use crate::{files::absent_is_fine, paths::peers::Paths};
use ipip_datapath::PATHS_SOCKET;
use serde::Serialize;
use std::{
    fs::{self, Permissions},
    io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::debug;

/// A reader that is slower gets a part.
const PATIENCE: Duration = Duration::from_secs(5);

/// One candidate of a peer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    peer: &'a str,
    candidate: &'static str,
    address: Ipv4Addr,
    in_use: bool,
    /// Whether it is better by itself than the path in use.
    is_better: bool,
    why: String,
}

/// Opens the socket in `state_dir`. Only root may connect, as the folder is root's.
///
/// # Errors
/// The kernel refuses it, for example because the path is too long.
pub fn open(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(PATHS_SOCKET);
    // Of an earlier agent: the lock of the folder shows that it has ended.
    absent_is_fine(fs::remove_file(&path))?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Removes the socket from a state folder. An absent one is no error.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(state_dir.join(PATHS_SOCKET)))
}

/// Writes the paths to somebody who has connected, without waiting for it.
pub fn answer(mut stream: UnixStream, paths: &Paths) {
    let rows: Vec<Row> = rows(paths, Instant::now());
    let text = serde_json::to_vec(&rows).unwrap_or_default();
    tokio::spawn(async move {
        if let Ok(Err(error)) = timeout(PATIENCE, stream.write_all(&text)).await {
            debug!(%error, "the reader of the paths is gone");
        }
    });
}

fn rows(paths: &Paths, now: Instant) -> Vec<Row<'_>> {
    let peers = paths.why(now);
    let rows = peers.flat_map(|(peer, reasons)| {
        let in_use = reasons.iter().position(|(_, why)| why.is_in_use());
        let rank = in_use.map(|it| reasons[it].0.rank());
        let rows = reasons.into_iter().map(move |(candidate, why)| Row {
            peer,
            candidate: candidate.number.name(),
            address: candidate.address,
            in_use: why.is_in_use(),
            is_better: rank.is_none_or(|it| candidate.rank() < it),
            why: why.to_string(),
        });
        rows.collect::<Vec<_>>()
    });
    rows.collect()
}
