//! A real agent that reads its nodes from an [`ApiServer`].

use crate::api_server::ApiServer;
use anyhow::{Context, Result, ensure};
use ipip_datapath::{Maps, Pins};
use ipip_testkit::{
    http::{self, Response},
    node_maps, shell,
    trash::Item,
    wait,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::{Child, Command},
};

/// The health endpoint of the agent, in the namespace of the API server.
const HEALTH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9878);

/// The agent of a node. Dropping this value kills the agent and removes its pins.
pub struct ApiAgent<'a> {
    server: &'a ApiServer,
    node: String,
    pins: Pins,
    child: Child,
}

impl<'a> ApiAgent<'a> {
    /// Starts the agent of `node` with the rights of the agents' service account.
    pub fn start(server: &'a ApiServer, node: &str) -> Result<Self> {
        Self::start_with(server, node, &[])
    }

    /// Starts the agent of `node` with these settings as flags.
    pub fn start_with(server: &'a ApiServer, node: &str, settings: &[&str]) -> Result<Self> {
        let token = server.agent_token(node)?;
        let kubeconfig = server.kubeconfig(&format!("agent-{node}.conf"), &token)?;
        let root = PathBuf::from(format!("/sys/fs/bpf/{}", server.host().name()));
        server.trash().add(Item::Folder(root.clone()));
        let mut command = Command::new(shell::own_program("ipip-agent")?);
        command
            .args(["--node-name", node, "--masquerade", "false"])
            .args(["--log", "info,kube=warn"])
            .args(settings)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--pin-root")
            .arg(&root)
            .arg("--state-dir")
            .arg(server.folder().join(format!("state-{node}")))
            .arg("--run-dir")
            .arg(server.folder().join(format!("run-{node}")));
        let child = server.spawn(&format!("agent-{node}"), &mut command)?;
        Ok(Self {
            server,
            node: node.into(),
            pins: Pins::new(root),
            child,
        })
    }

    /// The process ID of the agent.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The maps of the node.
    pub fn maps(&self) -> Result<Maps> {
        Ok(Maps::open(&self.pins)?)
    }

    /// The names of the peers in the node's maps, sorted.
    pub fn peers(&self) -> Result<Vec<String>> {
        Ok(node_maps::peers(&self.maps()?)?.into_keys().collect())
    }

    /// Waits until the node's maps hold exactly these peers, in this order.
    pub fn wait_peers(&self, expected: &[&str]) -> Result<()> {
        let mut found = Ok(Vec::new());
        wait::until(&format!("{} has the peers {expected:?}", self.node), || {
            found = self.peers();
            Ok(found.as_ref().is_ok_and(|found| found == expected))
        })
        .with_context(|| format!("it has {found:?}\n{}", self.log()))
    }

    /// The answer of `/readyz`.
    pub fn ready(&self) -> Result<Response> {
        http::get(self.server.host(), HEALTH, "/readyz")
    }

    /// Waits until `/readyz` answers with this status and a body that contains `text`.
    pub fn wait_ready(&self, status: u16, text: &str) -> Result<()> {
        let mut last = None;
        wait::until(
            &format!("/readyz answers with {status} and {text:?}"),
            || {
                last = self.ready().ok();
                Ok(last
                    .as_ref()
                    .is_some_and(|it| it.status == status && it.body.contains(text)))
            },
        )
        .with_context(|| format!("the last answer is {last:?}\n{}", self.log()))
    }

    /// The agent's log.
    pub fn log(&self) -> String {
        let path: &Path = self.server.folder();
        fs::read_to_string(path.join(format!("agent-{}.log", self.node))).unwrap_or_default()
    }

    /// Fails if the agent has ended.
    pub fn expect_running(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "the agent ended ({ended:?}):\n{}",
            self.log()
        );
        Ok(())
    }
}

impl Drop for ApiAgent<'_> {
    fn drop(&mut self) {
        let process = Item::process(&self.child);
        if self
            .child
            .kill()
            .and_then(|()| self.child.wait().map(drop))
            .is_ok()
        {
            self.server.trash().forget(&process);
        }
        if let Err(error) = ipip_datapath::remove(&self.pins) {
            eprintln!("removing the pins of {}: {error}", self.node);
        }
        let _ = fs::remove_dir_all(self.server.folder().join(format!("state-{}", self.node)));
    }
}
