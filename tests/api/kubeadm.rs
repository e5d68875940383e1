//! `ipipctl kubeadm-config`, validated by the real kubeadm.

use anyhow::Result;
use ipip_lab::kubernetes::tools::program;
use ipip_testkit::{harness::LoneTest, lone_tests, shell};
use std::{fs, process::Command};
use tempfile::TempDir;

const INIT: &str = "--public-endpoint 203.0.113.11 --pod-cidr 10.42.0.0/16 \
                    --service-cidr 10.43.0.0/16 --internal-ip 10.0.0.11 --node-name a1 \
                    --realm cloud-a --kubernetes-version v1.36.3";
/// Without a version, kubeadm would look up the newest one on the Internet.
const LEAST_INIT: &str =
    "--public-endpoint k8s.example.org --pod-cidr 10.42.0.0/16 --kubernetes-version v1.36.3";
const JOIN: &str = "--join k8s.example.org --token abcdef.0123456789abcdef --ca-cert-hash \
                    sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub const TESTS: &[LoneTest] = lone_tests![
    kubeadm_accepts_the_configuration_of_a_control_plane,
    kubeadm_accepts_the_configuration_of_a_node_that_joins,
    kubeadm_refuses_a_field_that_it_does_not_know,
    the_api_servers_certificate_is_for_the_public_endpoint_and_the_private_address,
];

fn kubeadm_accepts_the_configuration_of_a_control_plane() -> Result<()> {
    validate(&config(INIT)?)?;
    validate(&config(LEAST_INIT)?)
}

fn kubeadm_accepts_the_configuration_of_a_node_that_joins() -> Result<()> {
    validate(&config(JOIN)?)?;
    validate(&config(&format!(
        "{JOIN} --internal-ip 10.0.0.21 --node-name b1 --realm cloud-b"
    ))?)
}

fn kubeadm_refuses_a_field_that_it_does_not_know() -> Result<()> {
    for arguments in [INIT, JOIN] {
        let wrong = config(arguments)?.replacen("\nkind:", "\nendpoint: x\nkind:", 1);
        let error = validate(&wrong).unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
    Ok(())
}

fn the_api_servers_certificate_is_for_the_public_endpoint_and_the_private_address() -> Result<()> {
    let folder = TempDir::new()?;
    let config = config(INIT)?.replacen(
        "controlPlaneEndpoint:",
        &format!(
            "certificatesDir: {}\ncontrolPlaneEndpoint:",
            folder.path().display()
        ),
        1,
    );
    for what in ["ca", "apiserver"] {
        let printed = kubeadm(&["init", "phase", "certs", what], &config)?;
        if what == "apiserver" {
            assert!(
                printed.contains("IPs [10.43.0.1 10.0.0.11 203.0.113.11]"),
                "{printed}"
            );
        }
    }
    Ok(())
}

fn config(arguments: &str) -> Result<String> {
    let mut command = Command::new(shell::own_program("ipipctl")?);
    command.arg("kubeadm-config");
    command.args(arguments.split_whitespace());
    shell::printed("ipipctl kubeadm-config", command.output())
}

fn validate(config: &str) -> Result<()> {
    kubeadm(&["config", "validate"], config).map(drop)
}

fn kubeadm(arguments: &[&str], config: &str) -> Result<String> {
    let folder = TempDir::new()?;
    let file = folder.path().join("kubeadm.yaml");
    fs::write(&file, config)?;
    let mut command = Command::new(program("kubeadm")?);
    command.args(arguments).arg("--config").arg(&file);
    shell::printed("kubeadm", command.output())
}
