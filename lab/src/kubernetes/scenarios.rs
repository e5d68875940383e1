//! Scenarios: connections and commands that must work across the clouds of a cluster, and the pods and Services that
//! they need.

mod api_server;
mod hosts;
mod kubectl;
mod metrics;
mod names;
pub mod objects;
mod pods;
mod services;

use super::{Cluster, PodHost};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// A connection or a command that must work across clouds.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name of its test: the sentence that it proves.
    pub name: &'static str,
    /// A short description.
    pub what: &'static str,
    /// The workaround without this project.
    pub by_hand: &'static str,
    /// Whether it may also work in a cluster whose clouds are not connected.
    pub holds_without: bool,
    /// Tries it, and describes the result.
    pub attempt: fn(&Workloads) -> Result<String>,
}

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    pods::SCENARIO,
    services::SCENARIO,
    services::NODE_PORTS,
    names::SCENARIO,
    kubectl::SCENARIO,
    metrics::SCENARIO,
    api_server::FROM_PODS,
    api_server::CALLS_PODS,
    hosts::SCENARIO,
    hosts::CLOSED,
];

/// A cluster with pods on each node, and Services for them.
#[derive(Debug)]
pub struct Workloads {
    /// The cluster.
    pub cluster: Cluster,
    max_wait: Duration,
    pods: BTreeMap<String, Ipv4Addr>,
}

impl Workloads {
    /// Starts pods and Services on a cluster whose nodes are ready. Scenarios retry for `max_wait`.
    pub fn start(cluster: Cluster, max_wait: Duration) -> Result<Self> {
        let mut workloads = Self {
            cluster,
            max_wait,
            pods: BTreeMap::new(),
        };
        workloads.cluster.import("agnhost")?;
        workloads.cluster.wait_default_account()?;
        workloads.cluster.apply(&objects::all(&workloads)?)?;
        workloads.cluster.apply_metrics("c1")?;
        workloads.find_pods()?;
        Ok(workloads)
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> Vec<&str> {
        self.cluster.nodes().map(|(_, spec)| &*spec.name).collect()
    }

    /// The address of the pod `on-NODE`.
    pub fn pod(&self, node: &str) -> Result<Ipv4Addr> {
        let pod = self.pods.get(node);
        pod.copied().with_context(|| format!("no pod on {node}"))
    }

    /// The network of the pod `on-NODE`, in which a test can open sockets of its own.
    pub fn pod_host(&self, node: &str) -> Result<PodHost> {
        PodHost::attach(&self.cluster, node, &format!("on-{node}"))
    }

    /// The address that a node has in its cloud.
    pub fn internal(&self, node: &str) -> Result<Ipv4Addr> {
        Ok(self.cluster.spec(node)?.addresses[0])
    }

    /// The address of a node on the Internet.
    pub fn public(&self, node: &str) -> Result<Ipv4Addr> {
        let public = self.cluster.spec(node)?.public;
        public.with_context(|| format!("{node} has no public address"))
    }

    /// The address of a Service of the namespace `default`.
    pub fn service(&self, name: &str) -> Result<Ipv4Addr> {
        let service = self.cluster.get(&format!("service/{name}"), None)?;
        let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
        address.parse().with_context(|| format!("Service {name}"))
    }

    /// Runs a shell script in a pod with `kubectl exec`, and returns its output.
    pub fn in_pod(&self, pod: &str, script: &str) -> Result<String> {
        // The API server needs some seconds to give up on a node that it cannot reach.
        let exec = ["exec", pod, "--request-timeout=8s", "--", "sh", "-c"];
        self.cluster.kubectl(&[&exec[..], &[script]].concat())
    }

    /// Sends `GET path` from a pod to web servers, and returns their answers in the same order. The answer of a
    /// server that does not respond is empty.
    pub fn ask_from_pod(
        &self,
        pod: &str,
        servers: &[(Ipv4Addr, u16)],
        path: &str,
    ) -> Result<Vec<String>> {
        let mut script = String::new();
        for (address, port) in servers {
            script += &format!(
                "printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | timeout 3 nc {address} {port} \
                 | sed '1,/^\\r*$/d' | tr -d '\\n'; echo; "
            );
        }
        let said = self.in_pod(pod, &script)?;
        let answers: Vec<String> = said.lines().map(|line| line.trim().into()).collect();
        if answers.len() != servers.len() {
            bail!("{pod} asked {} servers, and got {said:?}", servers.len());
        }
        Ok(answers)
    }

    /// Expects that every pod `KIND-NODE` reaches every other one on a port: the server at a node's `address`
    /// answers with the node's `name`, and sees the client's own `address`. Returns the number of pairs.
    pub fn expect_all_connected(
        &self,
        kind: &str,
        port: u16,
        address: impl Fn(&str) -> Result<Ipv4Addr>,
        name: impl Fn(&str) -> String,
    ) -> Result<usize> {
        let nodes = self.nodes();
        let at = |node: &&str| Ok((address(node)?, port));
        let servers: Vec<_> = nodes.iter().map(at).collect::<Result<_>>()?;
        let names: Vec<String> = nodes.iter().map(|node| name(node)).collect();
        for node in &nodes {
            let pod = format!("{kind}-{node}");
            let own = format!("{}:", address(node)?);
            self.soon(|| {
                let answers = self.ask_from_pod(&pod, &servers, "/hostname")?;
                ensure!(
                    answers == names,
                    "{pod} asked {names:?}, and got {answers:?}"
                );
                for seen in self.ask_from_pod(&pod, &servers, "/clientip")? {
                    ensure!(seen.starts_with(&own), "{pod} is seen as {seen}, not {own}");
                }
                Ok(())
            })?;
        }
        Ok(nodes.len() * nodes.len())
    }

    /// Runs `attempt` for all nodes in parallel.
    pub fn on_each(&self, attempt: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
        let attempt = &attempt;
        std::thread::scope(|scope| {
            let nodes = self.nodes().into_iter();
            let running: Vec<_> = nodes
                .map(|node| scope.spawn(move || attempt(node)))
                .collect();
            running.into_iter().try_for_each(super::joined)
        })
    }

    /// Retries until `attempt` succeeds or the maximum wait has passed, and returns the last result.
    pub fn soon<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.within(self.max_wait, attempt)
    }

    /// Retries like [`Workloads::soon`], but for at least `longer`, unless the maximum wait is zero.
    pub fn later<T>(&self, longer: Duration, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let max_wait = match self.max_wait {
            Duration::ZERO => Duration::ZERO,
            max_wait => max_wait.max(longer),
        };
        self.within(max_wait, attempt)
    }

    fn within<T>(&self, max_wait: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + max_wait;
        loop {
            match attempt() {
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                tried => return tried,
            }
        }
    }

    /// Waits until the pods of all nodes run, and reads their addresses.
    pub fn find_pods(&mut self) -> Result<()> {
        let names: Vec<String> = self.nodes().into_iter().map(str::to_owned).collect();
        for node in names {
            let pod = self.cluster.wait_pod(&format!("on-{node}"))?;
            let address = pod["status"]["podIP"].as_str().unwrap_or_default();
            let address = address
                .parse()
                .with_context(|| format!("podIP {address}"))?;
            self.pods.insert(node, address);
        }
        for node in self.nodes() {
            self.cluster.wait_pod(&format!("host-{node}"))?;
        }
        Ok(())
    }
}
