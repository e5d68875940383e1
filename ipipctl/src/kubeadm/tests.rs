use super::*;
use clap::{Parser, error::ErrorKind};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

const HASH: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parse(arguments: &str) -> Result<Options, clap::Error> {
    let arguments = ["ipipctl"].into_iter().chain(arguments.split_whitespace());
    Cli::try_parse_from(arguments).map(|cli| cli.options)
}

fn config(arguments: &str) -> String {
    kubeadm_config(&parse(arguments).unwrap()).unwrap()
}

fn refusal(arguments: &str) -> String {
    match parse(arguments) {
        Ok(options) => kubeadm_config(&options).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_control_plane_listens_on_its_private_address_and_is_reached_at_its_public_one() {
    let text = config(
        "--public-endpoint 203.0.113.11 --pod-cidr 10.42.0.0/16 --service-cidr 10.43.0.0/16 \
         --internal-ip 10.0.0.11 --node-name a1 --realm cloud-a --kubernetes-version v1.36.3",
    );
    assert_eq!(
        text,
        r#"# Made by `ipipctl kubeadm-config`; use it as `kubeadm init --config FILE`.
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint:
  advertiseAddress: "10.0.0.11"
nodeRegistration:
  name: a1
  kubeletExtraArgs:
  - name: node-ip
    value: "10.0.0.11"
  - name: node-labels
    value: ipip.dev/realm=cloud-a
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.36.3
controlPlaneEndpoint: 203.0.113.11:6443
apiServer:
  certSANs:
  - "203.0.113.11"
  - "10.0.0.11"
networking:
  podSubnet: 10.42.0.0/16
  serviceSubnet: 10.43.0.0/16
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.42.0.0/16
"#
    );
}

#[test]
fn an_option_that_is_not_given_is_left_to_kubeadm() {
    let text = config("--public-endpoint k8s.example.org --pod-cidr 10.42.0.0/16");
    assert_eq!(
        text,
        r#"# Made by `ipipctl kubeadm-config`; use it as `kubeadm init --config FILE`.
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
controlPlaneEndpoint: k8s.example.org:6443
apiServer:
  certSANs:
  - k8s.example.org
networking:
  podSubnet: 10.42.0.0/16
  serviceSubnet: 10.96.0.0/12
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.42.0.0/16
"#
    );
}

#[test]
fn a_node_joins_through_the_public_endpoint_under_its_private_address() {
    let text = config(&format!(
        "--join 203.0.113.11 --token abcdef.0123456789abcdef --ca-cert-hash {HASH} \
         --internal-ip 10.0.0.21 --realm cloud-b"
    ));
    assert_eq!(
        text,
        format!(
            r#"# Made by `ipipctl kubeadm-config`; use it as `kubeadm join --config FILE`.
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken:
    apiServerEndpoint: 203.0.113.11:6443
    token: abcdef.0123456789abcdef
    caCertHashes:
    - {HASH}
nodeRegistration:
  kubeletExtraArgs:
  - name: node-ip
    value: "10.0.0.21"
  - name: node-labels
    value: ipip.dev/realm=cloud-b
"#
        )
    );
}

#[test]
fn a_name_that_yaml_would_read_as_a_number_or_a_boolean_is_quoted() {
    for name in ["123", "1e5", "yes", "null"] {
        let text = config(&format!(
            "--public-endpoint a --pod-cidr 10.42.0.0/16 --node-name {name}"
        ));
        assert!(text.contains(&format!("  name: \"{name}\"\n")), "{text}");
    }
}

#[test]
fn a_refusal_names_option_value_and_remedy() {
    const GOOD: &str = "--public-endpoint 203.0.113.11 --pod-cidr 10.42.0.0/16";
    let join = format!("--join 203.0.113.11 --ca-cert-hash {HASH} --token abcdef.0123456789abcdef");
    let cases = [
        (
            "--public-endpoint 203.0.113.256 --pod-cidr 10.42.0.0/16",
            [
                "--public-endpoint",
                "203.0.113.256",
                "IPv4 address or a DNS name",
            ],
        ),
        (
            "--public-endpoint https://a --pod-cidr 10.42.0.0/16",
            ["--public-endpoint", "https://a", "without port or scheme"],
        ),
        (
            "--public-endpoint a:6443 --pod-cidr 10.42.0.0/16",
            ["--public-endpoint", "a:6443", "without port"],
        ),
        (
            "--public-endpoint 0.0.0.0 --pod-cidr 10.42.0.0/16",
            ["--public-endpoint", "0.0.0.0", "nodes of other clouds dial"],
        ),
        (
            "--public-endpoint A.example --pod-cidr 10.42.0.0/16",
            ["--public-endpoint", "A.example", "lower case"],
        ),
        (
            "--public-endpoint a --pod-cidr 10.42.0.0",
            ["--pod-cidr", "10.42.0.0", "such as 10.42.0.0/16"],
        ),
        (
            "--public-endpoint a --pod-cidr 10.42.1.0/16",
            ["--pod-cidr", "10.42.1.0/16", "write 10.42.0.0/16"],
        ),
        (
            "--public-endpoint a --pod-cidr 10.42.0.0/24",
            ["--pod-cidr", "10.42.0.0/24", "prefix of 23 or shorter"],
        ),
        (
            "--public-endpoint a --pod-cidr fd00::/48",
            ["--pod-cidr", "fd00::/48", "IPv4 range"],
        ),
        (
            "--public-endpoint a --pod-cidr 10.96.0.0/16",
            [
                "--pod-cidr 10.96.0.0/16",
                "--service-cidr 10.96.0.0/12",
                "choose two ranges",
            ],
        ),
        (
            &format!("{GOOD} --internal-ip 10.42.0.9"),
            [
                "--internal-ip 10.42.0.9",
                "--pod-cidr 10.42.0.0/16",
                "choose a range",
            ],
        ),
        (
            &format!("{GOOD} --internal-ip 10.96.0.9"),
            [
                "--internal-ip 10.96.0.9",
                "--service-cidr 10.96.0.0/12",
                "choose a range",
            ],
        ),
        (
            &format!("{GOOD} --internal-ip 127.0.0.1"),
            ["--internal-ip", "127.0.0.1", "this node's interface"],
        ),
        (
            &format!("{GOOD} --node-name A_1"),
            ["--node-name", "A_1", "lower case"],
        ),
        (
            &format!("{GOOD} --realm a-"),
            ["--realm", "a-", "at both ends"],
        ),
        (&format!("{GOOD} --realm a/b"), ["--realm", "a/b", "label"]),
        (
            &format!("{GOOD} --kubernetes-version 1.36"),
            ["--kubernetes-version", "1.36", "such as v1.36.3"],
        ),
        (
            &join.replace("abcdef.", "abc."),
            ["--token", "abc.0123456789abcdef", "kubeadm token create"],
        ),
        (
            &join.replace("sha256:", ""),
            ["--ca-cert-hash", "0123456789abcdef", "sha256:"],
        ),
    ];
    for (arguments, parts) in cases {
        let refusal = refusal(arguments);
        for part in parts {
            assert!(
                refusal.contains(part),
                "{arguments}\n{refusal}\nlacks: {part}"
            );
        }
    }
}

#[test]
fn options_of_the_control_plane_and_of_a_join_do_not_mix() {
    let kind = |arguments: &str| parse(arguments).unwrap_err().kind();
    let join = format!("--join a --token abcdef.0123456789abcdef --ca-cert-hash {HASH}");
    assert_eq!(kind(""), ErrorKind::MissingRequiredArgument);
    assert_eq!(kind("--join a"), ErrorKind::MissingRequiredArgument);
    assert_eq!(
        kind("--public-endpoint a"),
        ErrorKind::MissingRequiredArgument
    );
    for extra in [
        "--public-endpoint a",
        "--pod-cidr 10.42.0.0/16",
        "--service-cidr 10.43.0.0/16",
        "--kubernetes-version v1.36.3",
    ] {
        let both = kind(&format!("{join} {extra}"));
        assert_eq!(both, ErrorKind::ArgumentConflict, "{extra}");
    }
}
