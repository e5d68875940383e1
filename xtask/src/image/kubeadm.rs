//! The images of the pods that `kubeadm init` makes, for machines that reach no registry.
//!
//! They are called `lab.local/NAME:1`; the lab gives them the names that kubeadm asks for.

use super::{program, write_simple};
use crate::{command::output, tools};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// Programs that need nothing else.
const STATIC: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

const IPTABLES: &str = "usr/sbin/xtables-nft-multi";

/// The names of iptables that kube-proxy runs.
const IPTABLES_NAMES: [&str; 6] = [
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];

/// Where Debian's iptables finds its matches and targets.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Builds the images from the programs of the tools' cache.
pub fn kubeadm() -> Result<()> {
    let programs = tools::prepare(&STATIC)?.programs();
    for name in STATIC {
        image(name, vec![kubernetes_program(&programs, name)])?;
    }
    let mut files = iptables()?;
    files.push(kubernetes_program(&programs, "kube-proxy"));
    image("kube-proxy", files)
}

/// kubeadm's manifests find a program by its name.
fn kubernetes_program(programs: &Path, name: &str) -> Value {
    program(&format!("usr/local/bin/{name}"), &programs.join(name))
}

fn image(name: &str, files: Vec<Value>) -> Result<()> {
    let entrypoint = format!("/usr/local/bin/{name}");
    write_simple(
        name,
        &format!("lab.local/{name}:1"),
        &[entrypoint.as_str()],
        files,
    )
}

/// This machine's iptables, with its extensions and its libraries.
fn iptables() -> Result<Vec<Value>> {
    let path = format!("/{IPTABLES}");
    let libraries = output(Command::new("ldd").arg(&path))
        .with_context(|| format!("`ldd {path}` failed; remedy: install the package iptables"))?;
    let mut paths: Vec<String> = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect();
    paths.push(path);
    for extension in fs::read_dir(EXTENSIONS).with_context(|| format!("reading {EXTENSIONS}"))? {
        paths.push(extension?.path().display().to_string());
    }
    let files = paths
        .iter()
        .map(|path| program(path.trim_start_matches('/'), Path::new(path)));
    let links = IPTABLES_NAMES
        .iter()
        .map(|name| json!({"path": format!("usr/sbin/{name}"), "link": format!("/{IPTABLES}")}));
    Ok(files.chain(links).collect())
}
