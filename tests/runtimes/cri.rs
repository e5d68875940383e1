//! The calls of CRI that make and remove sandboxes.

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::{
    LinuxPodSandboxConfig, ListPodSandboxRequest, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusRequest, PortMapping, RemovePodSandboxRequest, RunPodSandboxRequest,
    StatusRequest, StopPodSandboxRequest, VersionRequest,
    runtime_service_client::RuntimeServiceClient,
};
use std::{net::Ipv4Addr, path::PathBuf};
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// A connection to a runtime.
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// Connects to the socket at `path`.
    pub fn connect(path: PathBuf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // gRPC needs an address; the connection goes to the socket at `path`.
        let endpoint = Endpoint::from_static("http://localhost");
        let connect = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = runtime.block_on(endpoint.connect_with_connector(connect))?;
        Ok(Self {
            runtime,
            client: RuntimeServiceClient::new(channel),
        })
    }

    /// Name and version of the runtime.
    pub fn version(&mut self) -> Result<String> {
        let request = VersionRequest::default();
        let answer = self.runtime.block_on(self.client.version(request))?;
        let answer = answer.into_inner();
        Ok(format!(
            "{} {}",
            answer.runtime_name, answer.runtime_version
        ))
    }

    /// Whether the runtime reports that its network is ready, and its message.
    pub fn network_ready(&mut self) -> Result<(bool, String)> {
        let request = StatusRequest::default();
        let answer = self.runtime.block_on(self.client.status(request))?;
        let status = answer.into_inner().status.context("no status")?;
        let mut conditions = status.conditions.into_iter();
        let network = conditions.find(|it| it.r#type == "NetworkReady");
        let network = network.context("the status has no condition NetworkReady")?;
        Ok((network.status, network.message))
    }

    /// Makes a sandbox in a cgroup below `cgroup`, and returns its ID.
    pub fn run(&mut self, name: &str, cgroup: &str, ports: &[(i32, i32)]) -> Result<String> {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: "/var/log/pods".into(),
            port_mappings: ports
                .iter()
                .map(|&(host_port, container_port)| PortMapping {
                    host_port,
                    container_port,
                    ..PortMapping::default()
                })
                .collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup.into(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let answer = self
            .runtime
            .block_on(self.client.run_pod_sandbox(request))?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// The sandbox's address.
    pub fn address(&mut self, id: &str) -> Result<Ipv4Addr> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        let answer = self
            .runtime
            .block_on(self.client.pod_sandbox_status(request))?;
        let network = answer.into_inner().status.and_then(|it| it.network);
        Ok(network.context("no network")?.ip.parse()?)
    }

    /// Stops and removes a sandbox.
    pub fn remove(&mut self, id: &str) -> Result<()> {
        let pod_sandbox_id = id.to_owned();
        let request = StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        self.runtime
            .block_on(self.client.stop_pod_sandbox(request))?;
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        self.runtime
            .block_on(self.client.remove_pod_sandbox(request))?;
        Ok(())
    }

    /// Fails if a sandbox is left.
    pub fn expect_none(&mut self) -> Result<()> {
        let request = ListPodSandboxRequest::default();
        let answer = self
            .runtime
            .block_on(self.client.list_pod_sandbox(request))?;
        let left = answer.into_inner().items.len();
        ensure!(left == 0, "{left} sandboxes are left");
        Ok(())
    }
}
