//! `cargo xtask demo`: shows the product in network namespaces, in less than a minute: three clouds,
//! four nodes with real agents, pods that the real CNI plugin made.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use ipip_abi::DropReason;
use ipip_lab::{
    Lab, Topology,
    hints::{self, Hint},
    topology::{STRANGER, WEB},
};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, tunnel_packets},
    echo::{EchoServer, tcp_exchange},
    host::Host,
    packet_builder,
    ping::Ping,
    sequence::Sequence,
    shell,
    trash::empty_all_on_interrupt,
    wait,
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// Builds three clouds on this machine and shows pods talking across them.
#[derive(Debug, Parser)]
struct Arguments {
    /// Leave everything running, and print how to enter it.
    #[arg(long)]
    keep: bool,
}

/// Columns of the table.
const TABLE_WIDTH: u16 = 120;

/// A row of the table.
struct Row {
    name: &'static str,
    tried: &'static str,
    /// Performs the row's check, and describes the measurement.
    show: fn(&Lab) -> Result<String>,
}

const ROWS: &[Row] = &[
    Row {
        name: "same cloud",
        tried: "pod on a1 -> pod on a2: ping, 16 MB of TCP there and back",
        show: |lab| pod_to_pod(lab, "a1", "a2"),
    },
    Row {
        name: "across clouds, same range",
        tried: "pod on a1 -> pod on b1, both nodes in 10.0.0.0/24, each behind 1:1 NAT",
        show: |lab| pod_to_pod(lab, "a1", "b1"),
    },
    Row {
        name: "across clouds, other range",
        tried: "pod on c1 -> pod on b1",
        show: |lab| pod_to_pod(lab, "c1", "b1"),
    },
    Row {
        name: "node -> remote InternalIP",
        tried: "a1 -> 10.0.0.21:10250 of b1, as `kubectl logs` and metrics-server do",
        show: node_to_internal_ip,
    },
    Row {
        name: "pod -> Internet",
        tried: "pod on a1 -> web server: its source address there",
        show: pod_to_internet,
    },
    Row {
        name: "on the wire",
        tried: "packets captured on the Internet while pods of a1 and b1 talk",
        show: on_the_wire,
    },
    Row {
        name: "stranger",
        tried: "a forged tunnel packet from b1's pod, sent to the public address of a1",
        show: stranger,
    },
    Row {
        name: "kill -9",
        tried: "agent of a1 killed and restarted under 10,000 packets/s each way, pod a1 <-> pod b1",
        show: kill_9,
    },
    Row {
        name: "ipipctl dump",
        tried: "every map of a1, from the pins alone",
        show: dump,
    },
];

fn main() -> ExitCode {
    match demo(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row succeeded.
fn demo(arguments: &Arguments) -> Result<bool> {
    empty_all_on_interrupt()?;
    let began = Instant::now();
    let mut lab = step("building an Internet, three clouds and four nodes", || {
        Lab::build(Topology::three_clouds())
    })?;
    step("starting four agents from one inventory", || {
        lab.start_agents()
    })?;
    step("starting five pods with the CNI plugin", || {
        lab.start_pods()
    })?;
    println!();
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_WIDTH)
        .set_header(["check", "tried", "result", "measured"]);
    let mut all_succeeded = true;
    for row in ROWS {
        let shown = step(row.name, || (row.show)(&lab));
        let (result, measured) = match shown {
            Ok(measured) => ("ok", measured),
            Err(error) => {
                all_succeeded = false;
                ("FAILED", format!("{error:#}"))
            }
        };
        table.add_row([row.name, row.tried, result, &measured]);
    }
    println!("\n{}\n{:.1} s", table, began.elapsed().as_secs_f64());
    if !all_succeeded {
        eprintln!("{}", lab.report());
    }
    if arguments.keep {
        lab.keep();
        print_hints(&lab)?;
    }
    Ok(all_succeeded)
}

/// Runs `work`; prints its name before, and its result and duration after it.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("… {what}");
    let began = Instant::now();
    let done = work();
    let mark = if done.is_ok() { "✓" } else { "✗" };
    println!("{mark} {what} ({:.1} s)", began.elapsed().as_secs_f64());
    done
}

fn pod_to_pod(lab: &Lab, from: &str, to: &str) -> Result<String> {
    let (from, to) = (lab.pod(from)?, lab.pod(to)?);
    let rtt = round_trip(from, to.address())?;
    let _server = EchoServer::start(to, 8080)?;
    let began = Instant::now();
    let seen = tcp_exchange(from, 0, to.at(8080), 16 << 20)?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(
        *seen.ip() == from.address(),
        "the other pod sees the source {seen}, not {}",
        from.address()
    );
    Ok(format!(
        "{} -> {}, round trip {rtt:?}, {:.0} MB/s",
        from.address(),
        to.address(),
        32.0 * 1.048_576 / seconds
    ))
}

fn node_to_internal_ip(lab: &Lab) -> Result<String> {
    let (from, to) = (lab.node("a1")?, lab.node("b1")?);
    let rtt = round_trip(from, to.internal_ip())?;
    let _kubelet = EchoServer::start(to, 10250)?;
    let at = SocketAddrV4::new(to.internal_ip(), 10250);
    let seen = tcp_exchange(from, 0, at, 1 << 20)?;
    let pod = lab.pod("a1")?;
    let seen_of_pod = tcp_exchange(pod, 0, at, 1 << 20)?;
    ensure!(*seen_of_pod.ip() == pod.address());
    Ok(format!(
        "round trip {rtt:?}; b1 sees the node as {}, a pod as {}",
        seen.ip(),
        seen_of_pod.ip()
    ))
}

fn pod_to_internet(lab: &Lab) -> Result<String> {
    let _server = EchoServer::start(&lab.fabric().web, 80)?;
    let seen = tcp_exchange(lab.pod("a1")?, 0, SocketAddrV4::new(WEB, 80), 100_000)?;
    let expected = lab.node("a1")?.public()?;
    ensure!(
        *seen.ip() == expected,
        "the source is {}, not {expected}",
        seen.ip()
    );
    Ok(format!("{}, the public address of a1", seen.ip()))
}

fn on_the_wire(lab: &Lab) -> Result<String> {
    let (from, to) = (lab.pod("a1")?, lab.pod("b1")?);
    let (a, b) = (from.node().public()?, to.node().public()?);
    let capture = lab.capture_on_internet("cloud-a")?;
    for _ in 0..3 {
        round_trip(from, to.address())?;
    }
    let packets = capture.stop()?;
    let tunnel = tunnel_packets(&packets, [a, b])?;
    let first = tunnel.first().context("no packet was captured")?;
    Ok(format!(
        "{} packets beside probes of paths, all of protocol 4 between public addresses:\n{first}",
        tunnel.len()
    ))
}

fn stranger(lab: &Lab) -> Result<String> {
    let (victim, claimed) = (lab.pod("a1")?, lab.pod("b1")?);
    let node = victim.node();
    let socket = victim.udp(9000)?;
    let inner = packet_builder::udp(claimed.at(9000), victim.at(9000), b"forged")?;
    let packet = packet_builder::ipip(STRANGER, node.public()?, &inner)?;
    let at_strangers = Capture::start(&lab.fabric().stranger, "eth0", CaptureDirection::In)?;
    let before = node.drops(DropReason::UnknownPeer)?;
    packet_builder::send(&lab.fabric().stranger, &packet)?;
    wait::until("a1 counts the packet", || {
        Ok(node.drops(DropReason::UnknownPeer)? > before)
    })?;
    let answers = at_strangers.stop()?;
    ensure!(answers.is_empty(), "the stranger got {answers:?}");
    socket.set_nonblocking(true)?;
    if socket.recv(&mut [0; 64]).is_ok() {
        bail!("the packet reached the pod");
    }
    Ok(format!(
        "dropped as {}, no answer",
        DropReason::UnknownPeer.name()
    ))
}

fn kill_9(lab: &Lab) -> Result<String> {
    let (one, other) = (lab.pod("a1")?, lab.pod("b1")?);
    round_trip(one, other.address())?;
    let leaving = Sequence::start(one, other, other.at(7000), 10_000)?;
    let arriving = Sequence::start(other, one, one.at(7000), 10_000)?;
    thread::sleep(Duration::from_millis(500));
    let restarted = one.node().kill_agent().and_then(|()| {
        thread::sleep(Duration::from_millis(500));
        one.node().restart_agent()
    });
    thread::sleep(Duration::from_millis(500));
    let (leaving, arriving) = (leaving.stop()?, arriving.stop()?);
    restarted?;
    let lost = leaving.lost() + arriving.lost();
    ensure!(lost == 0, "lost {lost}: {leaving:?}, {arriving:?}");
    Ok(format!("{} packets, 0 lost", leaving.sent + arriving.sent))
}

fn dump(lab: &Lab) -> Result<String> {
    let node = lab.node("a1")?;
    let text = shell::printed("ipipctl dump", Ok(node.ipipctl(&["dump"])?))?;
    let routes = shell::printed("ipipctl dump", Ok(node.ipipctl(&["dump", "ROUTES"])?))?;
    Ok(format!(
        "{} lines in total; the routes:\n{}",
        text.lines().count(),
        routes.trim_end()
    ))
}

/// Time of the fastest of three pings.
fn round_trip(from: &Host, to: Ipv4Addr) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        Ping::to(to).reply_ttl(from)?;
        best = best.min(began.elapsed());
    }
    Ok(Duration::from_micros(best.as_micros() as u64))
}

fn print_hints(lab: &Lab) -> Result<()> {
    println!("\nEverything keeps running. To open a shell on a machine:");
    for Hint { what, command } in hints::machines(lab) {
        println!("  {what:<34} {command}");
    }
    println!("To inspect the datapath of a node:");
    for Hint { what, command } in hints::datapath(lab)? {
        println!("  {what:<34} {command}");
    }
    let folder = lab.folder().display();
    println!(
        "Inventory, configurations and logs: {folder}/inventory.yaml, {folder}/a1/agent.log, ..."
    );
    println!("To remove everything: cargo xtask clean");
    Ok(())
}
