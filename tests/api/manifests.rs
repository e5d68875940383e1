//! The three forms of the manifests define the same objects. `UPDATE=1` writes `install.yaml`.

use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::tools::program;
use ipip_testkit::{harness::LoneTest, lone_tests, shell};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

pub const TESTS: &[LoneTest] = lone_tests![
    install_yaml_is_what_kustomize_makes,
    the_chart_with_its_defaults_is_install_yaml,
    the_chart_refuses_values_that_it_does_not_know,
];

fn manifests() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests"))
}

/// The objects of a file of manifests, by kind and name.
fn objects(text: &str) -> Result<BTreeMap<String, Value>> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text)?;
    objects
        .into_iter()
        .map(|object| {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            Ok((name, object))
        })
        .collect()
}

/// `helm`, from the tools or the PATH.
fn helm(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program("helm").unwrap_or_else(|_| "helm".into()));
    command
        .args([
            "template",
            "ipip",
            "--namespace=kube-system",
            "--include-crds",
            // A helm that was built without release flags assumes an old version.
            "--kube-version=1.36.0",
        ])
        .arg(manifests().join("helm/ipip"))
        .args(arguments);
    Ok(command)
}

fn install_yaml_is_what_kustomize_makes() -> Result<()> {
    let mut command = Command::new(program("kubectl")?);
    command.arg("kustomize").arg(manifests());
    let made = shell::printed("kubectl kustomize", command.output())?;
    let path = manifests().join("install.yaml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &made)?;
    }
    ensure!(
        fs::read_to_string(&path)? == made,
        "install.yaml is out of date; remedy: run with UPDATE=1, and review the difference"
    );
    Ok(())
}

fn the_chart_with_its_defaults_is_install_yaml() -> Result<()> {
    let output = helm(&[])?
        .output()
        .context("helm is missing; remedy: build it with `cargo xtask tools`")?;
    let chart = objects(&shell::printed("helm template", Ok(output))?)?;
    let plain = objects(&fs::read_to_string(manifests().join("install.yaml"))?)?;
    ensure!(
        chart.keys().eq(plain.keys()),
        "{:?}\n{:?}",
        chart.keys(),
        plain.keys()
    );
    for (name, object) in &plain {
        ensure!(chart[name] == *object, "{name}:\n{}\n{object}", chart[name]);
    }
    Ok(())
}

fn the_chart_refuses_values_that_it_does_not_know() -> Result<()> {
    for wrong in [
        "encapsulation=udp",
        "env.PATH=x",
        "image.pullPolicy=Sometimes",
        "kubernetesServicePort=0",
    ] {
        let output = helm(&["--set", wrong])?.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{wrong} is accepted");
        ensure!(text.contains("schema"), "{wrong}: {text}");
    }
    Ok(())
}
