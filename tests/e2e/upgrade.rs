//! Agent and plugin change their ABI version under traffic, there and back. The next version has maps of another layout,
//! one map more and one less (feature `next-abi`; the area builds it into `target/next`).

use anyhow::{Context, Result, bail, ensure};
use aya::{
    maps::{HashMap, MapData},
    programs::{ProgramInfo, SchedClassifier, TcAttachType},
};
use ipip_abi::{
    ABI_VERSION, Addr, Program,
    handover::{CURRENT, PodKey, PodRecord},
    maps,
};
use ipip_datapath::open_map;
use ipip_lab::{Lab, LabNode, LabPod, Topology, service::Service};
use ipip_testkit::{
    echo::EchoServer, harness::Test, ping::Ping, sequence::Sequence, shell, tests, wait,
};
use std::{
    collections::{BTreeSet, VecDeque},
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test<Lab>] = tests![
    a_plugin_of_another_version_adds_nothing_and_deletes,
    the_next_version_and_back_lose_no_packet_with_kills_at_any_instant,
];

/// How many agents are killed while they take over.
const KILLS: &str = "IPIP_HANDOVER_KILLS";
const PER_SECOND: u64 = 10_000;
/// The version of `target/next`, and a field that only it writes.
const NEXT: u32 = ABI_VERSION + 1000;
const FIELD_OF_NEXT: u8 = 200;
const CLUSTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 30), 80);
const PORT: u16 = 8080;

/// A node with one version, in which agents and plugin change.
pub fn topology() -> Topology {
    Topology::one_realm()
}

/// The same with clsact, as on kernels without TCX.
pub fn clsact_topology() -> Topology {
    let mut topology = topology();
    topology.agent.attach = Some("clsact".into());
    topology
}

/// The programs of an ABI version.
fn programs_of(abi: u32) -> Result<Option<PathBuf>> {
    if abi == ABI_VERSION {
        return Ok(None);
    }
    let debug = shell::bin_dir()?;
    let target = debug.parent().context("no target folder")?;
    let next = target.join("next/debug");
    ensure!(
        next.join("ipip-agent").is_file(),
        "{} has no programs; remedy: cargo xtask test e2e builds them",
        next.display()
    );
    Ok(Some(next))
}

fn a_plugin_of_another_version_adds_nothing_and_deletes(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let (of_this, _kept) = (lab.start_pod("a1", "old")?, lab.start_pod("a1", "kept")?);
    node.set_programs(programs_of(NEXT)?);
    expect_refusal(lab.start_pod("a1", "early"), ABI_VERSION, NEXT)?;
    let address = of_this.address();
    of_this.delete()?;
    wait::until("the agent removes the pod's entry", || {
        Ok(!entries(node)?.contains(&address))
    })?;

    node.kill_agent()?;
    node.restart_agent()?;
    expect_one_version(node, NEXT)?;
    node.set_programs(programs_of(ABI_VERSION)?);
    expect_refusal(lab.start_pod("a1", "late"), NEXT, ABI_VERSION)?;
    let status = node.ipipctl(&["status"])?;
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    ensure!(
        said.contains(&format!("is of ABI version {NEXT}")),
        "{said}"
    );
    node.set_programs(programs_of(NEXT)?);
    let of_next = lab.start_pod("a1", "new")?;
    Ping::to(of_next.address()).reply_ttl(lab.pod("a2")?)?;

    node.set_programs(programs_of(ABI_VERSION)?);
    node.kill_agent()?;
    node.restart_agent()?;
    expect_one_version(node, ABI_VERSION)?;
    Ping::to(of_next.address()).reply_ttl(lab.pod("a2")?)?;
    of_next.check()?;
    let records: HashMap<MapData, PodKey, PodRecord> = open_map(node.pins(), &maps::POD_RECORDS)?;
    let record = records.get(&Addr::from(of_next.address()).into(), 0)?;
    ensure!(
        record.field(FIELD_OF_NEXT) == Some(b"next"),
        "the next version's field is gone: {record:?}"
    );
    of_next.delete()
}

/// Expects that the plugin of ABI version `own` refuses because the datapath is of `current`.
fn expect_refusal(started: Result<LabPod>, current: u32, own: u32) -> Result<()> {
    let Err(error) = started else {
        bail!("the plugin of another version added a pod");
    };
    let said = format!("{error:#}");
    let versions =
        format!("is of ABI version {current}, and this program is of version {own}; remedy: ");
    ensure!(said.contains(&versions), "{said}");
    Ok(())
}

fn the_next_version_and_back_lose_no_packet_with_kills_at_any_instant(lab: &Lab) -> Result<()> {
    let kills = env::var(KILLS).map_or(Ok(4), |it| it.parse::<u32>())?;
    let (node, one, other) = (lab.node("a1")?, lab.pod("a1")?, lab.pod("a2")?);
    Ping::to(other.address()).reply_ttl(one)?;
    let _server = EchoServer::start(other, PORT)?;
    let service = Service {
        cluster: CLUSTER,
        node_port: 30_090,
        endpoint: other.at(PORT),
        masquerade: true,
    };
    let _service = service.install(node)?;
    let mut connection = Connection::open(one)?;
    let leaving = Sequence::start(one, other, other.at(7000), PER_SECOND)?;
    let arriving = Sequence::start(other, one, one.at(7000), PER_SECOND)?;
    let stop = AtomicBool::new(false);
    let (changed, churned) = thread::scope(|scope| {
        let churn = scope.spawn(|| churn(lab, &stop));
        let changed = change_versions(node, kills, || connection.exchange());
        stop.store(true, Ordering::Relaxed);
        let churned = churn.join();
        (
            changed,
            churned.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });
    let tallied = [("leaving", leaving.stop()?), ("arriving", arriving.stop()?)];
    changed?;
    let pods = churned?;
    ensure!(
        pods > kills as usize / 2,
        "only {pods} pods started meanwhile"
    );
    for (way, tallied) in tallied {
        ensure!(
            tallied.sent > PER_SECOND && tallied.lost() == 0 && tallied.duplicates == 0,
            "{way}: {tallied:?}"
        );
    }
    expect_one_version(node, ABI_VERSION)?;
    let alive: BTreeSet<Ipv4Addr> = lab
        .pods()
        .iter()
        .filter(|pod| pod.node().name() == node.name())
        .map(LabPod::address)
        .collect();
    wait::until("the entries of deleted pods are removed", || {
        Ok(entries(node)? == alive)
    })
}

/// Changes the version of the agent on `node`, kills it after each part of the time that this takes, and completes the
/// change, or goes back from it. Ends with this version.
fn change_versions(
    node: &LabNode,
    kills: u32,
    mut check: impl FnMut() -> Result<()>,
) -> Result<()> {
    let change = |abi: u32| -> Result<Duration> {
        node.kill_agent()?;
        node.set_programs(programs_of(abi)?);
        let began = Instant::now();
        node.restart_agent()?;
        expect_one_version(node, abi)?;
        Ok(began.elapsed())
    };
    let duration = change(NEXT)?;
    change(ABI_VERSION)?;
    check()?;
    let mut abi = ABI_VERSION;
    for kill in 0..kills {
        let to = if abi == NEXT { ABI_VERSION } else { NEXT };
        node.kill_agent()?;
        node.set_programs(programs_of(to)?);
        node.start_agent()?;
        thread::sleep(duration * kill / kills);
        // The next agent is started by `change`, which kills this one first.
        let goes_back = kill % 3 == 2;
        if !goes_back {
            abi = to;
        }
        change(abi)?;
        check().with_context(|| format!("after kill {kill}"))?;
    }
    change(ABI_VERSION).map(drop)
}

/// Starts and deletes pods until `stop`, and returns how many were started. Each lives through some changes.
fn churn(lab: &Lab, stop: &AtomicBool) -> Result<usize> {
    let other = lab.pod("a2")?;
    let mut alive = VecDeque::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(pod) = start_when_possible(lab, number, stop)? else {
            break;
        };
        number += 1;
        Ping::to(pod.address()).reply_ttl(other)?;
        alive.push_back(pod);
        for pod in &alive {
            Ping::to(other.address()).reply_ttl(pod)?;
            Ping::to(pod.address()).reply_ttl(other)?;
        }
        if alive.len() > 3
            && let Some(oldest) = alive.pop_front()
        {
            oldest.delete()?;
        }
    }
    alive.into_iter().try_for_each(LabPod::delete)?;
    Ok(number)
}

/// Starts a pod as a kubelet does: again and again while the plugin refuses, because it is of another version. None if
/// the test ends before.
fn start_when_possible(lab: &Lab, number: usize, stop: &AtomicBool) -> Result<Option<LabPod>> {
    while !stop.load(Ordering::Relaxed) {
        match lab.start_pod("a1", &format!("churn{number}")) {
            Ok(pod) => return Ok(Some(pod)),
            Err(error) if format!("{error:#}").contains("is of ABI version") => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// A connection to the Service, whose replies must take the host stack.
struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn open(client: &LabPod) -> Result<Self> {
        let stream = client.connect(CLUSTER)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        reader.read_line(&mut String::new())?;
        Ok(Self { stream, reader })
    }

    fn exchange(&mut self) -> Result<()> {
        self.stream.write_all(b"still there\n")?;
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        read.context("the connection to the Service is lost")?;
        ensure!(line == "still there\n", "{line:?} came back");
        Ok(())
    }
}

/// The addresses that have an entry in this version's `PODS`.
fn entries(node: &LabNode) -> Result<BTreeSet<Ipv4Addr>> {
    let pods = node.maps()?.pods;
    let addresses = pods.keys().map(|it| it.map(Ipv4Addr::from));
    Ok(addresses.collect::<Result<_, _>>()?)
}

/// Expects that nothing of another version is pinned or attached.
fn expect_one_version(node: &LabNode, abi: u32) -> Result<()> {
    let root = node.pins().root();
    let version = format!("v{abi}");
    ensure!(
        names(root)? == [CURRENT, "links", "shared", &version],
        "pinned: {:?}",
        names(root)?
    );
    let current = fs::read_link(root.join(CURRENT))?;
    ensure!(current == Path::new(&version), "{}", current.display());
    let programs = root.join(&version).join("programs");
    let program = |program: Program| -> Result<u32> {
        Ok(ProgramInfo::from_pin(programs.join(program.name()))?.id())
    };
    if node.attach_mode() == "clsact" {
        for name in names(&node.pins().links())? {
            let pin = node.pins().links().join(&name);
            let id = match ProgramInfo::from_pin(&pin) {
                // Its pod was deleted meanwhile.
                Err(_) if !pin.try_exists()? => continue,
                info => info?.id(),
            };
            let known = Program::ALL.into_iter().map(program);
            ensure!(
                known.collect::<Result<Vec<_>>>()?.contains(&id),
                "{name} is of another version"
            );
        }
        return Ok(());
    }
    let on_uplink = node
        .enter(|| SchedClassifier::query_tcx("eth0", TcAttachType::Ingress))??
        .1;
    let on_uplink: Vec<u32> = on_uplink.iter().map(ProgramInfo::id).collect();
    ensure!(
        on_uplink == [program(Program::FromUplink)?],
        "on eth0: {on_uplink:?}"
    );
    Ok(())
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
