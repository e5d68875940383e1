//! FOU sockets, which make GRO merge the packets that peers send in UDP.
//!
//! GRO merges the packets in UDP datagrams only if a foo-over-UDP (FOU) socket declares their protocol. Without a
//! socket, every segment travels to its pod alone. The sockets themselves receive nothing: `from_uplink` runs before
//! them and takes or drops every packet for an own address and the tunnel's UDP port. For this reason each socket is
//! bound to an own address. The state folder records the sockets that the agent opened.

use crate::{
    host::state,
    repairs::{self, Repair},
};
use ipip_datapath::{KernelVersion, kernel_version};
use ipip_netlink::Fou;
use std::{collections::BTreeSet, net::SocketAddrV4, path::Path};
use tracing::{info, warn};

/// File with the agent's sockets, one per line; absent if there are none.
const OURS: &str = "fou-sockets";

/// Earlier kernels look up a merged packet's socket by the inner addresses, and drop the packet if there is no
/// socket (fixed by commit 5ef31ea5d053).
const SINCE: KernelVersion = KernelVersion::new(6, 9, 0);

/// The sockets could not be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The kernel has no foo-over-UDP.
    #[error(
        "the kernel has no foo-over-UDP, built in or as a loaded module; remedy: `modprobe fou` (CONFIG_NET_FOU)"
    )]
    NoFou,
    /// The kernel would drop packets.
    #[error(
        "Linux {0} drops GRO-merged packets on FOU sockets that are bound to an address; remedy: Linux 6.9 or newer"
    )]
    OldKernel(KernelVersion),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// The agent's FOU sockets.
#[derive(Debug, Default)]
pub struct FouSockets {
    /// The sockets of the last call, to detect a change.
    wanted: Option<BTreeSet<SocketAddrV4>>,
    /// The last failure.
    failure: Option<String>,
    /// The failure that was logged last: once, although paths in UDP come and go.
    logged: Option<String>,
}

impl FouSockets {
    /// Opens missing sockets and closes the agent's sockets that are not in `wanted`. With `recheck`, queries the
    /// kernel even if `wanted` is unchanged. A failure is only logged, because packets arrive without GRO too.
    pub fn ensure(&mut self, wanted: BTreeSet<SocketAddrV4>, state_dir: &Path, recheck: bool) {
        let is_new = self.wanted.as_ref() != Some(&wanted);
        // The failure may have been that of an address which is on an interface now.
        if !is_new && !recheck && self.failure.is_none() {
            return;
        }
        let opened = apply(&wanted, state_dir);
        if let Ok(opened) = &opened
            && !is_new
            && self.failure.is_none()
            && !opened.is_empty()
        {
            repairs::record(Repair::Fou, format!("the FOU sockets {opened:?}"));
        }
        let failure = opened.err().map(|it| it.to_string());
        match &failure {
            Some(why) if failure != self.logged => {
                warn!(
                    why,
                    "no GRO for tunnel packets in UDP: bulk transfers are slower"
                );
                self.logged.clone_from(&failure);
            }
            None if (is_new || self.failure.is_some()) && !wanted.is_empty() => {
                info!(sockets = ?wanted, "GRO merges tunnel packets in UDP");
                self.logged = None;
            }
            _ => {}
        }
        self.failure = failure;
        self.wanted = Some(wanted);
    }
}

/// Closes every socket that the agent opened.
pub fn remove(state_dir: &Path) -> Result<(), Error> {
    apply(&BTreeSet::new(), state_dir).map(drop)
}

/// Returns the sockets that were opened.
fn apply(
    wanted: &BTreeSet<SocketAddrV4>,
    state_dir: &Path,
) -> Result<BTreeSet<SocketAddrV4>, Error> {
    let kernel = kernel_version();
    if kernel < SINCE && !wanted.is_empty() {
        remove(state_dir)?;
        return Err(Error::OldKernel(kernel));
    }
    let path = state_dir.join(OURS);
    let ours = read(&path)?;
    if wanted.is_empty() && ours.is_empty() {
        return Ok(BTreeSet::new());
    }
    let Some(mut fou) = Fou::open()? else {
        // The kernel removed the sockets with the module.
        write(&path, &ours, &BTreeSet::new())?;
        return if wanted.is_empty() {
            Ok(BTreeSet::new())
        } else {
            Err(Error::NoFou)
        };
    };
    let present: BTreeSet<SocketAddrV4> = fou.sockets()?.into_iter().collect();
    let missing = wanted - &present;
    // Record before opening: a crash between the two must not leave a socket that nothing closes.
    let after = &ours | &missing;
    write(&path, &ours, &after)?;
    for socket in (&ours - wanted).intersection(&present) {
        fou.delete(*socket)?;
    }
    // A socket that cannot be opened, because its address is on no interface yet, keeps no other from being opened.
    let (mut opened, mut refused) = (BTreeSet::new(), None);
    for socket in missing {
        match fou.add(socket) {
            Ok(()) => drop(opened.insert(socket)),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    let ours = &(&ours & &present) | &opened;
    write(&path, &after, &(&ours & wanted))?;
    match refused {
        Some(error) => Err(error.into()),
        None => Ok(opened),
    }
}

fn read(path: &Path) -> Result<BTreeSet<SocketAddrV4>, Error> {
    let text = state::read(path)?.unwrap_or_default();
    // A truncated line is not a socket.
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn write(
    path: &Path,
    before: &BTreeSet<SocketAddrV4>,
    after: &BTreeSet<SocketAddrV4>,
) -> Result<(), Error> {
    if before == after {
        return Ok(());
    }
    if after.is_empty() {
        return Ok(state::remove(path)?);
    }
    let lines: String = after.iter().map(|socket| format!("{socket}\n")).collect();
    Ok(state::write(path, &lines)?)
}
