//! `cargo xtask cluster`: starts, uses and removes a real Kubernetes cluster in three simulated clouds.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use ipip_lab::kubernetes::{self, Cluster, ClusterState, PodNetwork, ProxyMode, Settings};
use ipip_testkit::trash::empty_all_on_interrupt;
use std::{
    os::unix::process::CommandExt,
    process::ExitCode,
    time::{Duration, Instant},
};

/// The name of the cluster that this command manages; tests use other names.
const PREFIX: &str = "ipip-cluster";

/// A real Kubernetes cluster in three simulated clouds.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask cluster")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start the cluster, which keeps running
    Up {
        /// The network of the pods
        #[arg(long, value_enum, default_value = "ipip")]
        network: PodNetwork,
        /// The mode of kube-proxy
        #[arg(long, value_enum, default_value = "iptables")]
        proxy: ProxyMode,
    },
    /// Remove the cluster with everything that belongs to it
    Down,
    /// Show its nodes and pods
    Status,
    /// Run kubectl as the administrator
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a shell, or a command, on a node
    Enter {
        /// The node: a1, a2, b1 or c1
        node: String,
        /// A command to run instead of a shell
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Up { network, proxy } => up(Settings {
            network,
            proxy,
            ..Settings::default()
        }),
        Task::Down => {
            let began = Instant::now();
            kubernetes::remove(PREFIX)?;
            println!("removed in {:.1} s", began.elapsed().as_secs_f64());
            Ok(())
        }
        Task::Status => {
            kubectl(&["get", "nodes", "--output=wide"])?;
            kubectl(&["get", "pods", "--all-namespaces", "--output=wide"])
        }
        Task::Kubectl { arguments } => {
            let mut command = ClusterState::read(PREFIX)?.kubectl()?;
            Err(command.args(arguments).exec()).context("cannot run nsenter")
        }
        Task::Enter { node, command } => {
            let mut words = command.iter().map(String::as_str);
            let program = words.next().unwrap_or("bash");
            let mut entered = ClusterState::read(PREFIX)?.command(&node, program)?;
            Err(entered.args(words).exec()).context("cannot run nsenter")
        }
    }
}

fn up(settings: Settings) -> Result<()> {
    empty_all_on_interrupt()?;
    let left = kubernetes::leftovers(PREFIX)?;
    if !left.is_empty() {
        bail!(
            "a cluster exists already ({}): see `cargo xtask cluster status`; remedy: remove it with \
             `cargo xtask cluster down`",
            left[0]
        );
    }
    let began = Instant::now();
    println!("starting a Kubernetes cluster in three clouds");
    let cluster = Cluster::start_as(PREFIX, settings, &|step: &str, took: Duration| {
        println!("{:6.1} s  {step}", took.as_secs_f64());
    })?;
    cluster.keep();
    println!("{:6.1} s  in total\n", began.elapsed().as_secs_f64());
    for (machine, spec) in cluster.nodes() {
        println!(
            "{:3} in {}, InternalIP {}, public {}; logs in {}",
            spec.name,
            spec.cloud,
            spec.addresses[0],
            spec.public.map_or("-".into(), |public| public.to_string()),
            machine.folder().display()
        );
    }
    println!(
        "\ncargo xtask cluster status\n\
         cargo xtask cluster kubectl get nodes\n\
         cargo xtask cluster enter b1          # a shell on that node\n\
         cargo xtask cluster down"
    );
    Ok(())
}

fn kubectl(arguments: &[&str]) -> Result<()> {
    let status = ClusterState::read(PREFIX)?
        .kubectl()?
        .args(arguments)
        .status()
        .context("cannot run nsenter")?;
    if !status.success() {
        bail!("kubectl failed ({status})");
    }
    Ok(())
}
