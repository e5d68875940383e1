//! Names on the host, apart from the pins, that agent, CNI plugin and `ipipctl` share.

/// The default of the agent's setting `stateDir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/ipip";
/// The agent's report for `ipipctl status`, a file in the state folder.
pub const REPORT_FILE: &str = "report.json";
/// The agent's record of traffic for `ipipctl traffic`, a file in the state folder.
pub const TRAFFIC_FILE: &str = "traffic.json";
/// The kernel's name of the current boot (`man 4 random`).
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A socket in the state folder: to each connection, the agent writes which paths it uses, and why it does not use others, as
/// JSON.
pub const PATHS_SOCKET: &str = "paths.sock";
/// The file in the state folder whose lock a running agent holds.
pub const LOCK_FILE: &str = "agent.lock";
/// The folder of host-local's leases in the agent's CNI configuration. It is empty after a boot, as is the node: no pod
/// has survived.
pub const LEASES_DIR: &str = "/run/ipip/ipam";
/// The start of the alias that the CNI plugin gives to the host's side of each pod.
pub const POD_ALIAS_START: &str = "ipip ";
