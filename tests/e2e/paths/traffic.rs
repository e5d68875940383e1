//! Traffic in both directions between two pods.

use super::FAILOVER;
use anyhow::{Result, ensure};
use ipip_lab::LabPod;
use ipip_testkit::{
    ping::{Answer, Ping},
    sequence::{Sequence, Tallied},
    wait,
};

/// Running traffic.
pub struct Traffic {
    ways: [Sequence; 2],
}

/// What was counted in each direction.
pub struct Counted {
    pub ways: [(&'static str, Tallied); 2],
}

impl Traffic {
    /// Starts as soon as the pods reach each other: the first packet of a path may be lost during address resolution, which
    /// is not tested here. Traffic at another port may still run.
    pub fn start(one: &LabPod, other: &LabPod, port: u16, per_second: u64) -> Result<Self> {
        for (from, to) in [(one, other), (other, one)] {
            let what = format!("{} answers {}", to.name(), from.name());
            wait::until(&what, || {
                let answer = Ping::to(to.address()).send(from)?;
                Ok(matches!(answer, Answer::Reply { .. }))
            })?;
        }
        Ok(Self {
            ways: [
                Sequence::start(one, other, other.at(port), per_second)?,
                Sequence::start(other, one, one.at(port), per_second)?,
            ],
        })
    }

    /// Waits until this many further packets are sent in each direction.
    pub fn wait_for(&self, packets: u64) -> Result<()> {
        self.ways.iter().try_for_each(|it| it.wait_for(packets))
    }

    /// Ends the traffic, and counts.
    pub fn stop(self) -> Result<Counted> {
        let [there, back] = self.ways;
        Ok(Counted {
            ways: [("there", there.stop()?), ("back", back.stop()?)],
        })
    }
}

impl Counted {
    /// Expects that no packet was lost or arrived twice.
    pub fn lost_nothing(&self) -> Result<()> {
        for (way, tallied) in &self.ways {
            ensure!(tallied.sent >= 100, "too few packets to prove anything");
            ensure!(
                tallied.lost() == 0 && tallied.duplicates == 0,
                "{way}: {tallied:?}"
            );
        }
        Ok(())
    }

    /// Expects that packets were lost for the time of a failover at most, and prints for how long.
    pub fn failed_over(&self, what: &str) -> Result<()> {
        let gaps = self.ways.each_ref().map(|(way, tallied)| {
            let gap = tallied.longest_gap.as_secs_f64();
            format!("{way} {gap:.2} s, {} lost", tallied.lost())
        });
        eprintln!("{what}: longest gap {}", gaps.join("; "));
        for (way, tallied) in &self.ways {
            ensure!(
                tallied.longest_gap <= FAILOVER,
                "{what}, {way}: {tallied:?}"
            );
        }
        let lost: u64 = self.ways.iter().map(|(_, it)| it.lost()).sum();
        ensure!(lost > 0, "{what}: nothing was lost, so nothing failed");
        Ok(())
    }
}
