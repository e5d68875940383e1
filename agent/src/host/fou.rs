//! Has the kernel merge what peers send in UDP.
//!
//! GRO merges the segments inside datagrams only where a socket says what is in them (foo-over-UDP); without
//! one, each takes the whole way to its pod. Nothing arrives in these sockets: `from_uplink` comes before
//! them, and takes or drops all that is for the node's own addresses and our port. Hence they are bound to
//! those. Which ones are ours is kept in the state folder.

use crate::host::state;
use aya::util::KernelVersion;
use ipip_netlink::Fou;
use std::{collections::BTreeSet, net::SocketAddrV4, path::Path};
use tracing::{info, warn};

/// Holds our sockets, one a line; absent if there is none.
const OURS: &str = "fou-sockets";

/// Before it, the kernel looked for a merged packet's socket by the inner addresses, and lost the packet
/// if there was none (commit 5ef31ea5d053).
const SINCE: KernelVersion = KernelVersion::new(6, 9, 0);

/// Why a socket is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The kernel cannot.
    #[error(
        "foo-over-UDP is not in the kernel, nor loaded as a module; remedy: `modprobe fou` (CONFIG_NET_FOU)"
    )]
    NoFou,
    /// The kernel would lose packets.
    #[error(
        "Linux {0} loses packets that it merges for a socket bound to an address: 6.9 does not"
    )]
    OldKernel(KernelVersion),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// What was done last, so that nothing is done or said twice.
#[derive(Debug, Default)]
pub struct Merging {
    wanted: Option<BTreeSet<SocketAddrV4>>,
    failure: Option<String>,
}

impl Merging {
    /// Opens what is missing and closes what of ours is no longer wanted. `look` asks the kernel whether
    /// they are still there. What fails is only logged: packets are taken all the same, one by one.
    pub fn ensure(&mut self, wanted: BTreeSet<SocketAddrV4>, state_dir: &Path, look: bool) {
        let is_new = self.wanted.as_ref() != Some(&wanted);
        if !is_new && !look {
            return;
        }
        let failure = apply(&wanted, state_dir).err().map(|it| it.to_string());
        match &failure {
            Some(why) if is_new || failure != self.failure => {
                warn!(
                    why,
                    "packets in UDP are not merged on arrival: bulk transfers are slower"
                );
            }
            None if (is_new || self.failure.is_some()) && !wanted.is_empty() => {
                info!(sockets = ?wanted, "packets in UDP are merged on arrival (GRO)");
            }
            _ => {}
        }
        self.failure = failure;
        self.wanted = Some(wanted);
    }
}

/// Closes every socket of ours.
pub fn remove(state_dir: &Path) -> Result<(), Error> {
    apply(&BTreeSet::new(), state_dir)
}

fn apply(wanted: &BTreeSet<SocketAddrV4>, state_dir: &Path) -> Result<(), Error> {
    let kernel = KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0));
    if kernel < SINCE && !wanted.is_empty() {
        remove(state_dir)?;
        return Err(Error::OldKernel(kernel));
    }
    let path = state_dir.join(OURS);
    let ours = read(&path)?;
    if wanted.is_empty() && ours.is_empty() {
        return Ok(());
    }
    let Some(mut fou) = Fou::open()? else {
        write(&path, &ours, &BTreeSet::new())?;
        return if wanted.is_empty() {
            Ok(())
        } else {
            Err(Error::NoFou)
        };
    };
    let there: BTreeSet<SocketAddrV4> = fou.sockets()?.into_iter().collect();
    let missing = wanted - &there;
    // First kept, then opened: a crash in between loses nothing.
    let after = &ours | &missing;
    write(&path, &ours, &after)?;
    for socket in (&ours - wanted).intersection(&there) {
        fou.delete(*socket)?;
    }
    for socket in missing {
        fou.add(socket)?;
    }
    write(&path, &after, &(&after & wanted))
}

fn read(path: &Path) -> Result<BTreeSet<SocketAddrV4>, Error> {
    let text = state::read(path)?.unwrap_or_default();
    // A line that was cut off names no socket.
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
