//! The load generator: a client and a server process, each inside a pod. One of them measures.

use crate::{
    beds::Bed,
    busy::Mark,
    metrics::{Case, Load, Services},
    services,
    traffic::{self, Latencies},
};
use anyhow::{Context, Result, bail};
use clap::Args;
use ipip_testkit::host::{Host, set_option};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// Flow N uses this port + N.
pub const FIRST_PORT: u16 = 5100;
/// Bytes a second of a paced stream: 2 Gbit/s, which every bed carries with idle time to spare.
pub const PACED_BYTES: f64 = 250e6;
/// Packets a second of paced datagrams, likewise.
pub const PACED_PACKETS: f64 = 40e3;

/// How many times as long as asked a measurement may take.
const PATIENCE: u32 = 50;

/// How long a measurement takes.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Not measured: slow start, first route lookups.
    pub warm_up: Duration,
    /// Measured.
    pub measure: Duration,
}

/// What one measurement found.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Measured {
    /// Bytes, round trips, connections or packets.
    pub per_second: f64,
    /// CPU seconds of the machine for each of them.
    pub busy_seconds_each: f64,
    /// Of the round trips, where the load times them; else 0.
    pub median_us: f64,
    /// Likewise.
    pub p99_us: f64,
}

/// Runs one measurement between the pods of `bed`.
pub fn measure(bed: &Bed, case: &Case, times: Times) -> Result<Measured> {
    let (client, server) = if case.back { (1, 0) } else { (0, 1) };
    let address = match case.services {
        Services::Through => services::CLUSTER_IP,
        _ => bed.address(server),
    };
    let common = [
        load_name(case.load),
        case.flows.to_string(),
        times.warm_up.as_millis().to_string(),
        times.measure.as_millis().to_string(),
    ];
    let arguments = |first: &[&str]| -> Vec<String> {
        let first = first.iter().map(|word| (*word).to_string());
        first.chain(common.iter().cloned()).collect()
    };
    let mut server = Running::start(bed.pod(server), &arguments(&["server"]))?;
    let ready = server.line()?;
    if ready.trim() != "ready" {
        bail!("the server says {ready:?}");
    }
    let address = address.to_string();
    let mut client = Running::start(bed.pod(client), &arguments(&["client", &address]))?;
    let line = match case.load.is_timed_by_client() {
        true => client.line()?,
        false => server.line()?,
    };
    serde_json::from_str(&line).with_context(|| format!("no measurement: {line}"))
}

/// A part of this program in a pod. Dropping it kills it.
struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(host: &Host, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = host.enter(|| command.spawn())??;
        let output = child.stdout.take().context("a child without output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!(
                "a part of the benchmark ended early: {}",
                self.child.wait()?
            );
        }
        Ok(line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load_name(load: Load) -> String {
    clap::ValueEnum::to_possible_value(&load)
        .map(|value| value.get_name().to_string())
        .unwrap_or_default()
}

/// What both sides must know.
#[derive(Clone, Copy, Debug, Args)]
struct Common {
    load: Load,
    flows: u16,
    warm_up: u64,
    milliseconds: u64,
}

/// Arguments of the server part.
#[derive(Debug, Args)]
pub struct Server {
    #[command(flatten)]
    common: Common,
}

/// Arguments of the client part.
#[derive(Debug, Args)]
pub struct Client {
    to: Ipv4Addr,
    #[command(flatten)]
    common: Common,
}

impl Server {
    /// Prints `ready`, waits for the load, measures unless the client does, prints what it found.
    /// Serves until it is killed, so that the client never sees it go.
    pub fn run(&self) -> Result<()> {
        let count = AtomicU64::new(0);
        let Common { load, flows, .. } = self.common;
        if flows == 1 {
            run_on(<[usize]>::last)?;
        }
        thread::scope(|scope| {
            for flow in 0..flows {
                let at = (Ipv4Addr::UNSPECIFIED, FIRST_PORT + flow);
                let count = &count;
                match load {
                    Load::Datagrams | Load::PacedDatagrams => {
                        let socket = UdpSocket::bind(at)?;
                        // Never the socket's queue shall be what drops.
                        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
                        scope.spawn(move || traffic::take_datagrams(&socket, load.wait(), count));
                    }
                    load => {
                        let listener = TcpListener::bind(at)?;
                        scope.spawn(move || traffic::take_connections(&listener, load, count));
                    }
                }
            }
            say("ready")?;
            if !load.is_timed_by_client() {
                let measured = self.common.measured(&count, || ())?;
                say(&serde_json::to_string(&measured)?)?;
            }
            Ok(())
        })
    }
}

impl Client {
    /// Offers load until it is killed.
    pub fn run(&self) -> Result<()> {
        let Common { load, flows, .. } = self.common;
        if flows == 1 {
            run_on(<[usize]>::first)?;
        }
        let latencies = Latencies::default();
        let count = AtomicU64::new(0);
        thread::scope(|scope| {
            let latencies = &latencies;
            let count = &count;
            for flow in 0..flows {
                let to = SocketAddrV4::new(self.to, FIRST_PORT + flow);
                scope.spawn(move || {
                    let ended = match load {
                        Load::Stream => traffic::stream(to, None),
                        Load::PacedStream => traffic::stream(to, Some(PACED_BYTES)),
                        Load::RequestResponse | Load::PolledRequestResponse => {
                            traffic::round_trips(to, load.wait(), count, latencies)
                        }
                        Load::Connections => traffic::connections(to),
                        Load::Datagrams => traffic::datagrams(to, None),
                        Load::PacedDatagrams => traffic::datagrams(to, Some(PACED_PACKETS)),
                    };
                    if let Err(error) = ended {
                        eprintln!("{load:?} to {to}: {error}");
                        std::process::exit(1);
                    }
                });
            }
            if load.is_timed_by_client() {
                let mut measured = self.common.measured(count, || latencies.forget())?;
                [measured.median_us, measured.p99_us] = latencies.quantiles([0.5, 0.99]);
                say(&serde_json::to_string(&measured)?)?;
            }
            Ok(())
        })
    }
}

impl Common {
    /// Waits for the load, warms up, calls `begin`, and measures.
    fn measured(&self, count: &AtomicU64, begin: impl FnOnce()) -> Result<Measured> {
        while count.load(Ordering::Relaxed) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(self.warm_up));
        begin();
        let (mark, before) = (Mark::now()?, count.load(Ordering::Relaxed));
        // A machine that others use may leave nothing for us all the while.
        let counted = (0..PATIENCE)
            .find_map(|_| {
                thread::sleep(Duration::from_millis(self.milliseconds));
                Some(count.load(Ordering::Relaxed) - before).filter(|counted| *counted > 0)
            })
            .context("nothing arrives any more")? as f64;
        Ok(Measured {
            per_second: counted / mark.seconds(),
            busy_seconds_each: mark.busy()? / counted,
            ..Measured::default()
        })
    }
}

/// Keeps this process on one CPU. Pods of two nodes share none; if the scheduler may put both ends of
/// one flow on the same CPU, it does so now and then, and one measurement is another's fourfold.
fn run_on(which: fn(&[usize]) -> Option<&usize>) -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .collect();
    let mut one = CpuSet::new();
    one.set(*which(&cpus).context("no CPU is allowed")?)?;
    Ok(sched_setaffinity(this, &one)?)
}

fn say(line: &str) -> Result<()> {
    println!("{line}");
    Ok(std::io::stdout().flush()?)
}
