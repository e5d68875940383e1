//! How fast one agent follows thousands of nodes of a real API server, and what that costs.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use comfy_table::Table;
use futures_util::{StreamExt, TryStreamExt, stream};
use ipip_lab::{
    api_agent::ApiAgent,
    api_server::{ADDRESS, ApiServer},
};
use ipip_testkit::{shell, trash::empty_all_on_interrupt};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use serde_json::json;
use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

#[derive(Parser)]
#[command(about = "How fast one agent follows thousands of nodes of a real API server")]
struct Options {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 5000)]
    nodes: u32,
    /// Changes in a second
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// Seconds of changes
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Seconds in which nothing changes
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Also write the numbers as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    empty_all_on_interrupt()?;
    let server = ApiServer::start(&format!("ipip-sync-{}", std::process::id()))?;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    server.kubectl(&["apply", "--server-side", "-k", manifests])?;
    server.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/ipipnodes.ipip.dev",
    ])?;
    eprintln!("writing {} nodes", options.nodes);
    on_api(&server, async |api: Api<DynamicObject>| {
        let numbers = stream::iter(0..options.nodes);
        let create = |n| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &object(n)?)
                    .await
                    .map_err(anyhow::Error::from)
            }
        };
        numbers
            .map(create)
            .buffer_unordered(64)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(())
    })?;
    own_node(&server)?;

    let began = Instant::now();
    let agent = ApiAgent::start(&server, "own")?;
    while agent.ready().ok().is_none_or(|it| it.status != 200) {
        ensure!(
            began.elapsed() < Duration::from_secs(120),
            "never ready:\n{}",
            agent.log()
        );
        thread::sleep(Duration::from_millis(5));
    }
    let cold = began.elapsed();
    ensure!(
        agent.peers()?.len() == options.nodes as usize,
        "maps are not complete"
    );

    let mut latencies = follow(&server, &agent, &options)?;
    latencies.sort();
    ensure!(!latencies.is_empty());
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    thread::sleep(Duration::from_secs(3));
    let idle = received(&server, Duration::from_secs(options.idle))? as f64 / options.idle as f64;
    let (resident, peak) = (status(agent.pid(), "VmRSS")?, status(agent.pid(), "VmHWM")?);
    let numbers = json!({
        "nodes": options.nodes,
        "cold_sync_ms": cold.as_millis() as u64,
        "changes": latencies.len(),
        "changes_per_second": options.rate,
        "change_to_map_p50_ms": at(0.5).as_millis() as u64,
        "change_to_map_p99_ms": at(0.99).as_millis() as u64,
        "change_to_map_max_ms": at(1.0).as_millis() as u64,
        "agent_rss_kib": resident,
        "agent_peak_rss_kib": peak,
        "idle_bytes_per_second": idle.round(),
    });
    let mut table = Table::new();
    table.set_header(["what", "measured", "at most"]);
    table.add_row([
        format!("{} nodes, agent start to ready", options.nodes),
        format!("{:.2} s", cold.as_secs_f64()),
        "5 s".into(),
    ]);
    table.add_row([
        format!(
            "change to map, p50 of {} at {}/s",
            latencies.len(),
            options.rate
        ),
        format!("{} ms", at(0.5).as_millis()),
        String::new(),
    ]);
    table.add_row([
        "change to map, p99".into(),
        format!("{} ms", at(0.99).as_millis()),
        "100 ms".into(),
    ]);
    table.add_row([
        "change to map, max".into(),
        format!("{} ms", at(1.0).as_millis()),
        String::new(),
    ]);
    table.add_row([
        "agent, resident".into(),
        format!("{:.1} MiB", resident as f64 / 1024.0),
        "48 MiB".into(),
    ]);
    table.add_row([
        "agent, resident at its peak".into(),
        format!("{:.1} MiB", peak as f64 / 1024.0),
        String::new(),
    ]);
    table.add_row([
        "API server to agent, nothing changing".into(),
        format!("{idle:.0} B/s"),
        String::new(),
    ]);
    println!("{table}");
    println!("{numbers}");
    if let Some(path) = &options.json {
        fs::write(path, format!("{numbers}\n"))?;
    }
    Ok(())
}

fn name(n: u32) -> String {
    format!("node-{n:05}")
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("ipip.dev", "v1alpha1", "IpipNode"),
        "ipipnodes",
    )
}

fn object(n: u32) -> Result<DynamicObject> {
    let (high, low) = (n >> 8, n & 255);
    Ok(serde_json::from_value(json!({
        "apiVersion": "ipip.dev/v1alpha1",
        "kind": "IpipNode",
        "metadata": {"name": name(n)},
        "spec": {
            "internalIPs": [format!("172.{}.{low}.7", 16 + high)],
            "podCIDRs": [format!("10.{}.{low}.0/24", 100 + high)],
            "publicEndpoint": format!("198.{}.{low}.7", 51 + high),
        },
    }))?)
}

fn own_node(server: &ApiServer) -> Result<()> {
    server.apply("{apiVersion: v1, kind: Node, metadata: {name: own}, spec: {podCIDR: 10.42.0.0/24, podCIDRs: [10.42.0.0/24]}}")?;
    let status =
        format!(r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{ADDRESS}"}}]}}}}"#);
    server
        .kubectl(&[
            "patch",
            "node",
            "own",
            "--subresource=status",
            "-p",
            &status,
        ])
        .map(drop)
}

/// Runs `f` with a client whose sockets are in the server's namespace.
fn on_api<T: Send>(
    server: &ApiServer,
    f: impl AsyncFnOnce(Api<DynamicObject>) -> Result<T> + Send,
) -> Result<T> {
    let kubeconfig = Kubeconfig::read_from(server.admin_kubeconfig()?)?;
    server.host().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            f(Api::all_with(Client::try_from(config)?, &resource())).await
        })
    })?
}

/// Changes one node after the other, and tells how long each took from the request to the map.
fn follow(server: &ApiServer, agent: &ApiAgent<'_>, options: &Options) -> Result<Vec<Duration>> {
    let maps = agent.maps()?;
    let mut ids = HashMap::new();
    for index in 1..maps.peer_info.len() {
        let info = maps.peer_info.get(&index, 0)?;
        if info.name_len > 0 {
            ids.insert(info.name().to_owned(), index);
        }
    }
    let (sent, changes) = mpsc::channel::<(u32, u8, Instant)>();
    let count = options.rate * options.seconds;
    let pause = Duration::from_secs(1) / options.rate;
    thread::scope(|scope| {
        let watcher = scope.spawn(move || -> Result<Vec<Duration>> {
            let (mut pending, mut done) = (Vec::new(), Vec::new());
            let mut heard = Instant::now();
            while done.len() < count as usize {
                for change in changes.try_iter() {
                    pending.push(change);
                    heard = Instant::now();
                }
                let mut rest = Vec::with_capacity(pending.len());
                for (id, wanted, at) in pending {
                    match maps.peers.get(&id, 0)?.encapsulation == wanted {
                        true => done.push(at.elapsed()),
                        false => rest.push((id, wanted, at)),
                    }
                }
                pending = rest;
                ensure!(
                    heard.elapsed() < Duration::from_secs(30),
                    "{} changes never came:\n{}",
                    pending.len(),
                    agent.log()
                );
                thread::sleep(Duration::from_micros(500));
            }
            Ok(done)
        });
        on_api(server, async |api: Api<DynamicObject>| {
            let mut writes = tokio::task::JoinSet::new();
            let mut clock = tokio::time::interval(pause);
            for n in 0..count {
                clock.tick().await;
                // Each node once, in no order that the agent has.
                let name = name(n * 2741 % options.nodes);
                let id = *ids.get(&name).context("no such peer")?;
                let patch = json!({"spec": {"encapsulation": "udp"}});
                sent.send((id, ipip_abi::Encapsulation::Udp as u8, Instant::now()))?;
                let api = api.clone();
                writes.spawn(async move {
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                });
            }
            while let Some(written) = writes.join_next().await {
                written??;
            }
            Ok(())
        })?;
        watcher
            .join()
            .map_err(|_| anyhow::anyhow!("the watcher panicked"))?
    })
}

/// Bytes that the agent receives from the API server in this time.
fn received(server: &ApiServer, time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let mut before = received_by_port(server)?;
    let mut sum = 0;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(500));
        // A long watch ends and begins anew, on a connection with a count of its own.
        let now = received_by_port(server)?;
        for (port, bytes) in &now {
            sum += bytes.saturating_sub(before.get(port).copied().unwrap_or_default());
        }
        before = now;
    }
    Ok(sum)
}

/// What each connection of the agent has received so far, by its own port.
fn received_by_port(server: &ApiServer) -> Result<HashMap<String, u64>> {
    let mut command = std::process::Command::new("ss");
    command.args(["-tinpH", "state", "established", "dport = :6443"]);
    let text = shell::printed("ss", Ok(server.host().output(&mut command)?))?;
    let mut counts = HashMap::new();
    let mut port = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words
            .clone()
            .find_map(|word| word.strip_prefix("bytes_received:"))
        {
            Some(bytes) => {
                if let Some(port) = port.take() {
                    counts.insert(port, bytes.parse()?);
                }
            }
            // Queues, own address, peer's address, process.
            None => {
                port = words
                    .nth(2)
                    .filter(|_| line.contains("ipip-agent"))
                    .map(str::to_owned)
            }
        }
    }
    Ok(counts)
}

/// A line of /proc/PID/status, in KiB.
fn status(pid: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .context("no such field")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("no value")?
        .parse()?)
}
