//! The load generator: a client and a server process, each in its pod. One of them measures.

mod pace;
mod tcp;
mod udp;

use super::{cpu_time::CpuTimer, load::Measured, metrics::Load};
use crate::statistics::quantiles;
use anyhow::{Context, Result};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{setsockopt, sockopt::RcvBufForce},
    unistd::Pid,
};
use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};
use tcp::Latencies;

/// Flow N uses this port + N.
pub const FIRST_PORT: u16 = 5100;
/// Bytes per second of a paced stream: 2 Gbit/s, which saturates no setup.
pub const PACED_BYTES: f64 = 250e6;
/// Packets per second of paced datagrams; this rate saturates no setup either.
pub const PACED_PACKETS: f64 = 40e3;
/// Bytes of a datagram socket's receive queue, which is large enough to drop no packets.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A measurement without a single count is repeated up to this many times.
const MAX_REPEATS: u32 = 50;

/// Arguments of both processes.
#[derive(Clone, Copy, Debug, Args)]
struct LoadArguments {
    load: Load,
    flows: u16,
    /// Milliseconds before the measurement.
    warm_up: u64,
    /// Length of the measurement.
    milliseconds: u64,
}

/// The process that receives the load.
#[derive(Debug, Args)]
pub struct LoadServer {
    #[command(flatten)]
    arguments: LoadArguments,
}

/// The process that offers the load.
#[derive(Debug, Args)]
pub struct LoadClient {
    to: Ipv4Addr,
    #[command(flatten)]
    arguments: LoadArguments,
}

impl LoadServer {
    /// Prints `ready`, waits for the load and, unless the client measures, measures and prints the result.
    /// Then serves until it is killed, so that the client does not lose its connections.
    pub fn run(&self) -> Result<()> {
        let count = AtomicU64::new(0);
        let LoadArguments { load, flows, .. } = self.arguments;
        if flows == 1 {
            run_on(<[usize]>::last)?;
        }
        thread::scope(|scope| {
            for flow in 0..flows {
                let at = (Ipv4Addr::UNSPECIFIED, FIRST_PORT + flow);
                let count = &count;
                if matches!(load, Load::Datagrams | Load::PacedDatagrams) {
                    let socket = UdpSocket::bind(at)?;
                    setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
                    scope.spawn(move || udp::receive(&socket, load.wait(), count));
                } else {
                    let listener = TcpListener::bind(at)?;
                    scope.spawn(move || tcp::serve(&listener, load, count));
                }
            }
            print_line("ready")?;
            if !load.is_measured_by_client() {
                let measured = self.arguments.measure(&count, || ())?;
                print_line(&serde_json::to_string(&measured)?)?;
            }
            Ok(())
        })
    }
}

impl LoadClient {
    /// Offers load until it is killed. For round trips it measures and prints the result.
    pub fn run(&self) -> Result<()> {
        let LoadArguments { load, flows, .. } = self.arguments;
        if flows == 1 {
            run_on(<[usize]>::first)?;
        }
        let latencies = Latencies::default();
        let count = AtomicU64::new(0);
        thread::scope(|scope| {
            let (latencies, count) = (&latencies, &count);
            for flow in 0..flows {
                let to = SocketAddrV4::new(self.to, FIRST_PORT + flow);
                scope.spawn(move || {
                    if let Err(error) = offer(load, to, count, latencies) {
                        eprintln!("{load:?} to {to}: {error}");
                        std::process::exit(1);
                    }
                });
            }
            if load.is_measured_by_client() {
                let mut measured = self.arguments.measure(count, || latencies.clear())?;
                [measured.median_us, measured.p99_us] =
                    quantiles(latencies.microseconds(), [0.5, 0.99]);
                print_line(&serde_json::to_string(&measured)?)?;
            }
            Ok(())
        })
    }
}

/// Offers the load of one flow; returns only with an error.
fn offer(load: Load, to: SocketAddrV4, count: &AtomicU64, latencies: &Latencies) -> io::Result<()> {
    match load {
        Load::Stream => tcp::stream(to, None),
        Load::PacedStream => tcp::stream(to, Some(PACED_BYTES)),
        Load::RequestResponse | Load::PolledRequestResponse => {
            tcp::round_trips(to, load.wait(), count, latencies)
        }
        Load::Connections => tcp::connections(to),
        Load::Datagrams => udp::send(to, None),
        Load::PacedDatagrams => udp::send(to, Some(PACED_PACKETS)),
    }
}

impl LoadArguments {
    /// Waits for the first count, warms up, calls `begin`, and measures.
    fn measure(&self, count: &AtomicU64, begin: impl FnOnce()) -> Result<Measured> {
        while count.load(Ordering::Relaxed) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(self.warm_up));
        begin();
        let (timer, before) = (CpuTimer::start()?, count.load(Ordering::Relaxed));
        // On a busy machine this process may get no CPU time during the whole measurement.
        let counted = (0..MAX_REPEATS)
            .find_map(|_| {
                thread::sleep(Duration::from_millis(self.milliseconds));
                Some(count.load(Ordering::Relaxed) - before).filter(|counted| *counted > 0)
            })
            .context("the load has stopped: nothing was counted")? as f64;
        Ok(Measured {
            per_second: counted / timer.seconds(),
            cpu_seconds_each: timer.cpu_seconds()? / counted,
            ..Measured::default()
        })
    }
}

/// Binds this process to one CPU. Pods of two nodes do not share a CPU; if the scheduler put both ends of
/// one flow on the same CPU, that measurement would be up to four times as fast as the others.
fn run_on(choose: fn(&[usize]) -> Option<&usize>) -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .collect();
    let mut one = CpuSet::new();
    one.set(*choose(&cpus).context("this process may use no CPU")?)?;
    Ok(sched_setaffinity(this, &one)?)
}

fn print_line(line: &str) -> Result<()> {
    println!("{line}");
    Ok(io::stdout().flush()?)
}
