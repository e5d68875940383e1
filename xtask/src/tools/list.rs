//! The tools and their versions.

use std::fmt;

/// The version of Kubernetes that the lab runs.
pub const KUBERNETES: &str = "v1.36.3";

/// Programs that are built from one module.
#[derive(Debug)]
pub struct Tool {
    /// Its name, and that of its folder.
    pub name: &'static str,
    /// Its version in Go's form, as `v1.2.3`.
    pub version: &'static str,
    /// The module that determines the dependencies.
    pub module: Module,
    /// The packages to build; the program's name is the last part of the path.
    pub packages: &'static [&'static str],
    /// Build tags.
    pub tags: &'static [&'static str],
    /// Whether it contains C, so that it can only be built on a machine with this processor.
    pub cgo: bool,
    /// Whether it is built only when it is named: no cluster needs it.
    pub on_demand: bool,
    /// The variable that the project's own Makefile sets to the version, if there is one.
    pub version_variable: Option<&'static str>,
}

/// The module in which a tool is built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Module {
    /// A module with the dependencies of Kubernetes, etcd among them.
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
        cgo: false,
        on_demand: false,
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
        cgo: false,
        on_demand: false,
        version_variable: None,
    }
}

/// All tools. The API server and etcd come first, because some tests need no others.
pub static TOOLS: &[Tool] = &[
    kubernetes("kube-apiserver", &["k8s.io/kubernetes/cmd/kube-apiserver"]),
    Tool {
        name: "etcd",
        // The version in Kubernetes' go.mod.
        version: "v3.6.8",
        module: Module::Kubernetes,
        packages: &["go.etcd.io/etcd/server/v3"],
        tags: &[],
        cgo: false,
        on_demand: false,
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
    // The tests of Kubernetes itself run it in pods: as a server, a webhook, a client of the API.
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
    // The pod network from which a cluster migrates in a test. Its backend `udp`, which the test does not use, is in C.
    Tool {
        cgo: true,
        on_demand: true,
        ..own(
            "flannel",
            "v0.27.4",
            "github.com/flannel-io/flannel",
            &["github.com/flannel-io/flannel"],
        )
    },
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
