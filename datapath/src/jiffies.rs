//! The kernel's coarse clock, which programs read at no cost.

use ipip_abi::maps::JIFFIES_UNIT_BITS;
use nix::time::{ClockId, clock_getres, clock_gettime};
use std::{io, time::Duration};

/// The value of `NEXT_HOPS_UNTIL` that stands for `valid` from now, in units of 2^[`JIFFIES_UNIT_BITS`] jiffies. Rounded
/// down, because the unit in which the time ends counts as a whole.
///
/// # Errors
/// The kernel has no such clock.
pub fn next_hops_until(valid: Duration) -> io::Result<u32> {
    let tick = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let tick = tick.as_nanos().max(1);
    let hz = (Duration::from_secs(1).as_nanos() + tick / 2) / tick;
    // `INITIAL_JIFFIES` of linux/jiffies.h: the lower 32 bits overflow five minutes after the boot.
    let at_boot = (1_u128 << 32) - 300 * hz;
    let jiffies = at_boot + (now + valid).as_nanos() / tick;
    Ok((jiffies >> JIFFIES_UNIT_BITS) as u32)
}
