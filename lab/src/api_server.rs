//! A real API server (etcd and kube-apiserver alone) in a network namespace, with an interface for one agent.

use crate::kubernetes::tools::program;
use anyhow::{Context, Result, bail};
use ipip_testkit::{
    host::Host,
    shell,
    trash::{Item, Trash},
};
use std::{
    env, fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The port of kube-apiserver.
pub const PORT: u16 = 6443;
/// The address of the namespace's interface.
pub const ADDRESS: &str = "10.0.0.11";
const ADMIN_TOKEN: &str = "admin-of-the-test";
const MAX_WAIT: Duration = Duration::from_secs(120);

/// A running API server. Dropping it removes everything that belongs to it.
pub struct ApiServer {
    host: Host,
    folder: PathBuf,
    server: Mutex<Option<Child>>,
    trash: Trash,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver, and waits until they are ready. `name` is the name of the namespace.
    pub fn start(name: &str) -> Result<Self> {
        let trash = Trash::default();
        let folder = env::temp_dir().join(name);
        trash.add(Item::Folder(folder.clone()));
        fs::create_dir_all(&folder)?;
        let host = Host::create(name.into(), &trash)?;
        host.ip("link add eth0 type veth peer name eth0-far")?;
        host.ip("link set eth0 up")?;
        host.ip("link set eth0-far up")?;
        host.ip(&format!("address add {ADDRESS}/24 dev eth0"))?;
        host.ip("route add default via 10.0.0.1 dev eth0")?;
        let it = Self {
            host,
            folder,
            server: Mutex::new(None),
            trash,
        };
        it.write_files()?;
        let mut etcd = Command::new(program("etcd")?);
        etcd.arg("--data-dir").arg(it.folder.join("etcd")).args([
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
        ]);
        it.spawn("etcd", &mut etcd)?;
        it.start_server(PORT)?;
        Ok(it)
    }

    /// Its namespace.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its folder, removed with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its list of objects to remove.
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// Starts kube-apiserver on `port`, after it was [stopped](Self::stop_server).
    pub fn start_server(&self, port: u16) -> Result<()> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(program("kube-apiserver")?);
        command.args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=127.0.0.1",
            &format!("--secure-port={port}"),
            &format!("--advertise-address={ADDRESS}"),
            "--endpoint-reconciler-type=none",
            &format!("--cert-dir={}", file("certs")),
            &format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--service-account-key-file={}", file("certs/sa.pub")),
            &format!(
                "--service-account-signing-key-file={}",
                file("certs/sa.key")
            ),
            // The benchmark writes thousands of objects at once.
            "--max-mutating-requests-inflight=1000",
        ]);
        let child = self.spawn("kube-apiserver", &mut command)?;
        *self.server() = Some(child);
        let deadline = Instant::now() + MAX_WAIT;
        let ready = || self.try_kubectl_at(port, &["get", "--raw", "/readyz"]);
        while !ready()?.status.success() {
            if Instant::now() > deadline {
                bail!(
                    "kube-apiserver is not ready after {MAX_WAIT:?}\n{}",
                    self.report()
                );
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Kills kube-apiserver. etcd keeps running.
    pub fn stop_server(&self) -> Result<()> {
        let mut child = self
            .server()
            .take()
            .context("kube-apiserver does not run")?;
        child.kill()?;
        child.wait()?;
        self.trash.forget(&Item::process(&child));
        Ok(())
    }

    /// Runs kubectl as an administrator, and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_at(PORT, arguments)
    }

    /// Runs kubectl as an administrator with the API server on another port, and returns what it prints.
    pub fn kubectl_at(&self, port: u16, arguments: &[&str]) -> Result<String> {
        shell::printed(
            &format!("kubectl {}", arguments.join(" ")),
            Ok(self.try_kubectl_at(port, arguments)?),
        )
    }

    /// Runs kubectl with a token, and returns its output even if it fails.
    pub fn kubectl_as(&self, token: &str, arguments: &[&str]) -> Result<Output> {
        self.host.output(&mut self.command(PORT, token, arguments)?)
    }

    /// Applies a manifest as an administrator.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let mut command =
            self.command(PORT, ADMIN_TOKEN, &["apply", "--server-side", "-f", "-"])?;
        self.host
            .enter(|| shell::run_with_input(&mut command, manifest))?
            .map(drop)
    }

    /// Applies the project's manifests, and waits until the API server knows their kinds.
    pub fn apply_manifests(&self) -> Result<()> {
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
        self.kubectl(&["apply", "--server-side", "-k", manifests])?;
        let established = "--for=condition=Established";
        let kinds = [
            "crd/ipipnodes.ipip.dev",
            "crd/ipipclaims.ipip.dev",
            "crd/ipippodblocks.ipip.dev",
        ];
        self.kubectl(&[&["wait", established][..], &kinds].concat())
            .map(drop)
    }

    /// A token of the agents' service account, bound to a node.
    pub fn agent_token(&self, node: &str) -> Result<String> {
        let bound = format!("--bound-object-name={node}");
        let arguments = [
            "create",
            "token",
            "ipip-agent",
            "--namespace=kube-system",
            "--bound-object-kind=Node",
            &bound,
        ];
        Ok(self.kubectl(&arguments)?.trim().into())
    }

    /// A kubeconfig for `token`, in the folder.
    pub fn kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        let authority = self.folder.join("certs/apiserver.crt");
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster: {{server: \"https://127.0.0.1:{PORT}\", certificate-authority: {}}}
users:
- name: test
  user: {{token: {token}}}
contexts:
- name: test
  context: {{cluster: test, user: test}}
",
            authority.display()
        );
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// A kubeconfig of an administrator.
    pub fn admin_kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig("admin.conf", ADMIN_TOKEN)
    }

    /// Starts `command` in the namespace, with its output in a file of the folder.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Child> {
        let log = self.folder.join(format!("{name}.log"));
        self.host.daemon(command, &log, &self.trash)
    }

    /// Whether something listens on `port` of the namespace.
    pub fn listens(&self, port: u16) -> Result<bool> {
        self.host
            .enter(|| TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    /// Diagnostics for a failed test: the end of the API server's log.
    pub fn report(&self) -> String {
        let log = self.folder.join("kube-apiserver.log");
        let log = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("--- log of kube-apiserver\n{tail}")
    }

    fn write_files(&self) -> Result<()> {
        let certs = self.folder.join("certs");
        let tokens = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
        fs::write(self.folder.join("tokens.csv"), tokens)?;
        let mut kubeadm = Command::new(program("kubeadm")?);
        kubeadm
            .args(["init", "phase", "certs", "sa", "--cert-dir"])
            .arg(certs);
        shell::printed("kubeadm init phase certs sa", kubeadm.output()).map(drop)
    }

    fn try_kubectl_at(&self, port: u16, arguments: &[&str]) -> Result<Output> {
        self.host
            .output(&mut self.command(port, ADMIN_TOKEN, arguments)?)
    }

    fn command(&self, port: u16, token: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("kubectl")?);
        command
            .env("HOME", &self.folder)
            .env_remove("KUBECONFIG")
            .arg(format!("--server=https://127.0.0.1:{port}"))
            .arg("--insecure-skip-tls-verify")
            .arg(format!("--token={token}"))
            .args(arguments);
        Ok(command)
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.trash.empty();
    }
}
