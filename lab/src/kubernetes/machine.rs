//! A machine of a cluster: namespaces of its own for network, mounts and host name, and a cgroup
//! that holds all its processes.

use crate::kubernetes::tools::Tools;
use anyhow::{Context, Result, bail};
use ipip_testkit::{
    cgroups,
    host::Host,
    shell,
    trash::{Item, Trash, pid},
};
use nix::unistd::Pid;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    ops::Deref,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, PoisonError},
};

/// Makes the mounts and then holds the namespaces. Arguments: the machine's folder, its host name, and the
/// cgroup of its daemons.
///
/// `/etc`, `/var` and `/opt` are those of the host with a private layer on top, so that no write of a node
/// reaches the host. `/` is shared within the machine, because pods with `mountPropagation: Bidirectional`
/// need it.
const HOLDER: &str = r#"
set -eu
folder=$1 name=$2
echo 0 > "$3/cgroup.procs"
mount --make-rprivate /
hostname "$name"
mkdir -p "$folder/cgroup"
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys
mount --move "$folder/cgroup" /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for top in etc var opt; do
  mkdir -p "$folder/upper/$top" "$folder/work/$top"
  mount -t overlay overlay -o "lowerdir=/$top,upperdir=$folder/upper/$top,workdir=$folder/work/$top" "/$top"
done
mount -t tmpfs -o mode=755 tmpfs /run
for real in kubelet containerd etcd; do
  mkdir -p "/var/lib/$real" "$folder/$real"
  mount --bind "$folder/$real" "/var/lib/$real"
done
for fresh in /etc/kubernetes /etc/cni /opt/cni /var/lib/cni /var/log/pods /var/log/containers; do
  rm -rf "$fresh"
done
mkdir -p /etc/kubernetes /etc/cni/net.d /opt/cni/bin /var/lib/cni /var/log/pods /var/log/containers
mkdir -p /run/netns
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > /etc/hosts
mount --make-rshared /
echo ready
exec sleep infinity
"#;

/// A running machine; also the [`Host`] of its network.
#[derive(Debug)]
pub struct Machine {
    host: Host,
    name: String,
    folder: PathBuf,
    holder: Pid,
    system: PathBuf,
    path: String,
    daemons: Mutex<Vec<(String, Child)>>,
    trash: Trash,
}

impl Deref for Machine {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Machine {
    /// Starts a machine on the network of `host`, with its files in `folder`.
    pub fn start(
        host: Host,
        name: &str,
        folder: PathBuf,
        tools: &Tools,
        trash: &Trash,
    ) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        trash.add(Item::Cgroup(host.name().into()));
        let system = cgroups::create(host.name())?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--uts", "sh", "-c", HOLDER, "holder"])
            .arg(&folder)
            .arg(name)
            .arg(&system)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = host
            .enter(|| command.spawn())?
            .context("cannot start unshare")?;
        let holder = pid(&child);
        trash.add(Item::Process(holder));
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        if said.trim() != "ready" {
            let mut why = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut why)?;
            }
            bail!("cannot make the mounts of {name}: {}", why.trim());
        }
        Ok(Self {
            host,
            name: name.into(),
            folder,
            holder,
            system,
            path: tools.search_path(),
            daemons: Mutex::default(),
            trash: trash.clone(),
        })
    }

    /// Its host name.
    pub fn hostname(&self) -> &str {
        &self.name
    }

    /// The folder with its files and logs, as seen from outside.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path, as seen from outside, of a file that the machine wrote below `/etc`, `/var` or `/opt`. Only read
    /// it.
    pub fn written(&self, path: &str) -> PathBuf {
        self.folder.join("upper").join(path.trim_start_matches('/'))
    }

    /// The process that holds the machine's namespaces.
    pub fn holder(&self) -> Pid {
        self.holder
    }

    /// The parent cgroup of its pods, as a kubelet names it.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.host.name())
    }

    /// A command that runs `program` on the machine, in the cgroup of its daemons.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "echo 0 > \"$1/cgroup.procs\" && shift && exec \"$@\"",
                "sh",
            ])
            .arg(&self.system)
            .args(["nsenter", "--target", &self.holder.to_string()])
            .args(["--mount", "--uts", "--net", "--"])
            .arg(program)
            .env("PATH", &self.path)
            .env("KUBECONFIG", "/etc/kubernetes/admin.conf")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Runs `program` with these arguments on the machine to its end.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.command(program)
            .args(arguments)
            .output()
            .with_context(|| format!("cannot run {program} on {}", self.name))
    }

    /// Runs `program` with these arguments, expects that it succeeds, and returns what it prints.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let line = format!("{program} {}", arguments.join(" "));
        shell::printed(&line, Ok(self.output(program, arguments)?))
            .with_context(|| format!("on {}", self.name))
    }

    /// Like [`Machine::run`], with `input` on the standard input.
    pub fn run_with_input(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        shell::run_with_input(self.command(program).args(arguments), input)
            .with_context(|| format!("on {}", self.name))
    }

    /// Writes a file of the machine in one step, and makes its parent folders.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        // Written inside the machine, because overlayfs does not notice writes to its layers.
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat > \"$1.new\" && mv \"$1.new\" \"$1\"";
        self.run_with_input("sh", &["-c", script, "sh", path], text)
            .map(drop)
            .with_context(|| format!("writing {path}"))
    }

    /// Starts a program that runs until the machine ends. It logs to `NAME.log` in the folder.
    pub fn daemon(&self, name: &str, command: &mut Command) -> Result<()> {
        let child = shell::daemon(command, &self.log_path(name), &self.trash)
            .with_context(|| format!("on {}", self.name))?;
        self.daemons().push((name.into(), child));
        Ok(())
    }

    /// Kills a daemon.
    pub fn kill_daemon(&self, name: &str) -> Result<()> {
        let mut daemons = self.daemons();
        let index = daemons
            .iter()
            .position(|(running, _)| running == name)
            .with_context(|| format!("no {name} runs on {}", self.name))?;
        let (_, mut child) = daemons.remove(index);
        child.kill()?;
        child.wait()?;
        self.trash.forget(&Item::process(&child));
        Ok(())
    }

    /// Fails if a daemon has ended; the error contains the end of its log.
    pub fn check_daemons(&self) -> Result<()> {
        for (name, child) in self.daemons().iter_mut() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "{name} of {} ended ({status}):\n{}",
                    self.name,
                    self.log_tail(name, 15)
                );
            }
        }
        Ok(())
    }

    /// The last lines of a daemon's log.
    pub fn log_tail(&self, name: &str, count: usize) -> String {
        let log = fs::read(self.log_path(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// The log file of a daemon.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// The names of the daemons that were started.
    pub fn daemon_names(&self) -> Vec<String> {
        self.daemons()
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn daemons(&self) -> std::sync::MutexGuard<'_, Vec<(String, Child)>> {
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
