//! Measures the rate of bulk TCP behind a router that becomes narrow. It prints and expects nothing: rates depend on the machine.

use super::narrow::{GROWN, both_have};
use anyhow::Result;
use ipip_lab::{Lab, LabPod, narrow::Narrow};
use ipip_testkit::{harness::Test, tests};
use std::{
    io::{Read, Write},
    net::SocketAddrV4,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test<Lab>] = tests![measure_rates_behind_a_router_that_becomes_narrow];

/// When the rate is measured, after the router has become narrow or wide again.
const AFTER: Duration = Duration::from_secs(5);
const ROUNDS: usize = 7;
/// How long one stream is measured in a round, after a time in which it begins to flow.
const MEASURED: Duration = Duration::from_millis(400);
const WARM_UP: Duration = Duration::from_millis(200);
/// Bytes of the outer header.
const OVERHEAD: u32 = 20;

/// Each case has a pair of nodes of its own, because a larger MTU is searched for only after a minute.
fn measure_rates_behind_a_router_that_becomes_narrow(lab: &Lab) -> Result<()> {
    for (names, cloud, mtu, drops_icmp) in [
        (["a1", "b1"], "cloud-b", 1400, false),
        (["a2", "b1"], "cloud-b", 1400, true),
        (["c1", "b1"], "cloud-b", 1280, false),
        (["a1", "c1"], "cloud-c", 1280, true),
    ] {
        let icmp = if drops_icmp { "dropped" } else { "sent" };
        measure(
            lab,
            names,
            cloud,
            (mtu, drops_icmp),
            &format!("MTU {mtu}, ICMP {icmp}"),
        )?;
    }
    Ok(())
}

fn measure(
    lab: &Lab,
    names: [&str; 2],
    cloud: &str,
    (mtu, drops_icmp): (u32, bool),
    what: &str,
) -> Result<()> {
    let usual = lab.topology().uplink_mtu;
    let pods = [lab.pod(names[0])?, lab.pod(names[1])?];
    let ends = pods.map(|it| &**it.node());
    // These have the right MTU at any time, as the setting `mtu` gives it to new pods.
    let right = [
        lab.start_pod(names[0], "right")?,
        lab.start_pod(names[1], "right")?,
    ];
    let right = [&right[0], &right[1]];
    let set = |mtu: u32| {
        let set = |it: &&LabPod| {
            it.ip(&format!("link set eth0 mtu {}", mtu - OVERHEAD))
                .map(drop)
        };
        right.iter().try_for_each(set)
    };
    set(mtu)?;
    let streams = Streams::start(pods, right)?;
    streams.flow(true);
    both_have(ends, usual, AFTER)?;
    thread::sleep(Duration::from_secs(1));

    let narrow = Narrow::start(lab.fabric(), lab.topology(), cloud, mtu, drops_icmp)?;
    thread::sleep(AFTER);
    streams.flow(false);
    streams.print_rates(&format!("{what}, after 5 s"));
    drop(narrow);
    set(usual)?;
    thread::sleep(AFTER);
    // A connection keeps the MSS with which it began.
    let streams = Streams::start(pods, right)?;
    streams.print_rates(&format!("{what}, 5 s after it is wide again"));
    let began = Instant::now();
    streams.flow(true);
    both_have(ends, usual, GROWN)?;
    let seconds = began.elapsed().as_secs();
    let streams = Streams::start(pods, right)?;
    streams.print_rates(&format!(
        "{what}, wide again and found after {seconds} s more"
    ));
    Ok(())
}

/// In each direction, a connection of usual pods and one of pods with the right MTU.
struct Streams([[Stream; 2]; 2]);

impl Streams {
    fn start(pods: [&LabPod; 2], right: [&LabPod; 2]) -> Result<Self> {
        let both = |from, to| {
            anyhow::Ok([
                Stream::start(pods[from], pods[to])?,
                Stream::start(right[from], right[to])?,
            ])
        };
        Ok(Self([both(0, 1)?, both(1, 0)?]))
    }

    /// Lets the usual pods send, or not.
    fn flow(&self, flows: bool) {
        self.0.iter().for_each(|[found, _]| found.flow(flows));
    }

    /// Prints the rates of each direction, measured in turns, and their ratio: medians with the least and the greatest one.
    fn print_rates(&self, what: &str) {
        for (way, streams) in ["there", "back"].iter().zip(&self.0) {
            let rounds = (0..ROUNDS).map(|_| streams.each_ref().map(Stream::rate));
            let rounds: Vec<[f64; 2]> = rounds.collect();
            let sorted = |of: fn(&[f64; 2]) -> f64| {
                let mut samples: Vec<f64> = rounds.iter().map(of).collect();
                samples.sort_by(f64::total_cmp);
                samples
            };
            let ratios = sorted(|[found, right]| found / right);
            println!(
                "{what}, {way}: {:.2} Gbit/s, {:.2} with the right MTU, ratio {:.2} ({:.2}..{:.2})",
                sorted(|it| it[0])[ROUNDS / 2],
                sorted(|it| it[1])[ROUNDS / 2],
                ratios[ROUNDS / 2],
                ratios[0],
                ratios[ROUNDS - 1],
            );
        }
    }
}

/// A TCP connection that sends while it is told to. It ends when this value is dropped.
struct Stream {
    flows: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

impl Stream {
    fn start(from: &LabPod, to: &LabPod) -> Result<Self> {
        let listener = to.listen(0)?;
        let port = listener.local_addr()?.port();
        let mut sender = from.connect(SocketAddrV4::new(to.address(), port))?;
        let (mut receiver, _) = listener.accept()?;
        let [flows, ends] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let received = Arc::new(AtomicU64::new(0));
        let it = Self {
            flows: flows.clone(),
            ends: ends.clone(),
            received: received.clone(),
        };
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                if !flows.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                } else if sender.write_all(&[0; 128 << 10]).is_err() {
                    return;
                }
            }
        });
        thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(len @ 1..) = receiver.read(&mut buffer) {
                received.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        Ok(it)
    }

    fn flow(&self, flows: bool) {
        self.flows.store(flows, Ordering::Relaxed);
    }

    /// The rate in Gbit/s while it flows alone.
    fn rate(&self) -> f64 {
        self.flow(true);
        thread::sleep(WARM_UP);
        let (began, before) = (Instant::now(), self.received.load(Ordering::Relaxed));
        thread::sleep(MEASURED);
        let bytes = self.received.load(Ordering::Relaxed) - before;
        let seconds = began.elapsed().as_secs_f64();
        self.flow(false);
        bytes as f64 * 8.0 / 1e9 / seconds
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}
