//! Which tools, and of which version.

use std::fmt;

/// The version of Kubernetes that the lab runs.
pub const KUBERNETES: &str = "v1.36.3";

/// A module's programs.
#[derive(Debug)]
pub struct Tool {
    /// Its name, and that of its folder.
    pub name: &'static str,
    /// Its version as Go spells it.
    pub version: &'static str,
    /// The module that is asked for.
    pub module: Module,
    /// The packages to build; each gives a program called like its last part.
    pub packages: &'static [&'static str],
    /// Build tags.
    pub tags: &'static [&'static str],
    /// The variable that its own Makefile gives the version, if there is one.
    pub version_variable: Option<&'static str>,
}

/// What a tool is built in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Module {
    /// The dependencies that Kubernetes has chosen, etcd among them.
    Kubernetes,
    /// The tool's own module.
    Own(&'static str),
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

const fn kubernetes(name: &'static str, packages: &'static [&'static str]) -> Tool {
    Tool {
        name,
        version: KUBERNETES,
        module: Module::Kubernetes,
        packages,
        tags: &[],
        version_variable: None,
    }
}

const fn own(
    name: &'static str,
    version: &'static str,
    module: &'static str,
    packages: &'static [&'static str],
) -> Tool {
    Tool {
        name,
        version,
        module: Module::Own(module),
        packages,
        tags: &[],
        version_variable: None,
    }
}

/// All of them. The API server and its store come first: some tests need no more.
pub static TOOLS: &[Tool] = &[
    kubernetes("kube-apiserver", &["k8s.io/kubernetes/cmd/kube-apiserver"]),
    Tool {
        name: "etcd",
        // The one in Kubernetes' own go.mod.
        version: "v3.6.8",
        module: Module::Kubernetes,
        packages: &["go.etcd.io/etcd/server/v3"],
        tags: &[],
        version_variable: None,
    },
    kubernetes("kubectl", &["k8s.io/kubernetes/cmd/kubectl"]),
    kubernetes("kubeadm", &["k8s.io/kubernetes/cmd/kubeadm"]),
    kubernetes("kubelet", &["k8s.io/kubernetes/cmd/kubelet"]),
    Tool {
        tags: &["no_btrfs", "no_devmapper", "no_zfs"],
        version_variable: Some("github.com/containerd/containerd/v2/version.Version"),
        ..own(
            "containerd",
            "v2.4.2",
            "github.com/containerd/containerd/v2",
            &[
                "github.com/containerd/containerd/v2/cmd/containerd",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/ctr",
            ],
        )
    },
    kubernetes(
        "kube-controller-manager",
        &["k8s.io/kubernetes/cmd/kube-controller-manager"],
    ),
    kubernetes("kube-scheduler", &["k8s.io/kubernetes/cmd/kube-scheduler"]),
    kubernetes("kube-proxy", &["k8s.io/kubernetes/cmd/kube-proxy"]),
    // What the tests of Kubernetes itself run in pods: servers, a webhook, a client of the API.
    kubernetes("agnhost", &["k8s.io/kubernetes/test/images/agnhost"]),
    Tool {
        version_variable: Some(
            "github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion",
        ),
        ..own(
            "cni-plugins",
            "v1.9.1",
            "github.com/containernetworking/plugins",
            &[
                "github.com/containernetworking/plugins/plugins/ipam/host-local",
                "github.com/containernetworking/plugins/plugins/main/bridge",
                "github.com/containernetworking/plugins/plugins/main/loopback",
                "github.com/containernetworking/plugins/plugins/meta/bandwidth",
                "github.com/containernetworking/plugins/plugins/meta/portmap",
            ],
        )
    },
    own(
        "helm",
        "v3.19.0",
        "helm.sh/helm/v3",
        &["helm.sh/helm/v3/cmd/helm"],
    ),
    own(
        "cnitool",
        "v1.3.0",
        "github.com/containernetworking/cni",
        &["github.com/containernetworking/cni/cnitool"],
    ),
    own(
        "coredns",
        "v1.14.7",
        "github.com/coredns/coredns",
        &["github.com/coredns/coredns"],
    ),
    Tool {
        version_variable: Some("sigs.k8s.io/metrics-server/pkg/version.gitVersion"),
        ..own(
            "metrics-server",
            "v0.9.0",
            "sigs.k8s.io/metrics-server",
            &["sigs.k8s.io/metrics-server/cmd/metrics-server"],
        )
    },
];
