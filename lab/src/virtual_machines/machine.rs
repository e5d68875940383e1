//! One virtual machine.

use super::guest_agent::{GuestAgent, Printed};
use crate::kubernetes::{Machine, tools};
use anyhow::{Context, Result, bail};
use ipip_testkit::wait;
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a machine may take to boot. On an idle host it takes 20 seconds, on a busy one 70.
const BOOT: Duration = Duration::from_secs(200);
/// How long a program on a machine may run, if nothing else is said.
const RUN: Duration = Duration::from_secs(300);
/// An emulated machine with two processors needs both of the host's cores.
const PROCESSORS: &str = "2";

/// The kernel's command line. Without `tsc=reliable`, the kernel reads the time from an emulated HPET, under a lock of
/// QEMU that all processors share. An emulated processor needs no mitigations.
const COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 apparmor=1 security=apparmor \
                            tsc=reliable mitigations=off";

/// A virtual machine with Debian 12, beside a machine that QEMU runs on.
#[derive(Debug)]
pub struct VirtualMachine {
    name: String,
    address: Ipv4Addr,
    kernel: PathBuf,
    folder: PathBuf,
    number: usize,
    memory: u32,
}

impl VirtualMachine {
    /// Copies the disk of a kernel series for a machine with this memory in MiB. `number` makes its MAC address unique.
    pub fn create(
        name: &str,
        number: usize,
        address: Ipv4Addr,
        kernel: &str,
        memory: u32,
        folder: &Path,
    ) -> Result<Self> {
        let kernel = tools::debian(kernel)?;
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let machine = Self {
            name: name.into(),
            address,
            kernel,
            folder,
            number,
            memory,
        };
        // `fs::copy` would write the holes, too.
        ipip_testkit::shell::run(&format!(
            "cp --sparse=always {} {}",
            machine.kernel.join("disk.img").display(),
            machine.disk().display()
        ))?;
        Ok(machine)
    }

    /// Its name, and that of its node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Starts QEMU, with `programs` as the second disk and an interface in the bridge `lan` of `on`. It runs until
    /// `on` ends or [`VirtualMachine::cut_power`].
    pub fn power_on(&self, on: &Machine, programs: &Path) -> Result<()> {
        let tap = format!("tap{}", self.number);
        // A tap outlives QEMU.
        if on.ip(&format!("link show {tap}")).is_err() {
            on.ip(&format!("tuntap add {tap} mode tap"))?;
            on.ip(&format!("link set {tap} master lan up"))?;
        }
        let mut qemu = on.command("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi"])
            // QEMU 7.2 crashes when Linux 6.12 uses cmpxchg16b.
            .args(["-cpu", "max,-cx16", "-smp", PROCESSORS])
            .args(["-m", &self.memory.to_string()])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(self.kernel.join("initrd"))
            .args(["-append", COMMAND_LINE])
            .args([
                "-drive",
                &format!(
                    "file={},if=virtio,format=raw,cache=unsafe",
                    self.disk().display()
                ),
                "-drive",
                &format!(
                    "file={},if=virtio,format=raw,readonly=on",
                    programs.display()
                ),
                "-netdev",
                &format!("tap,id=lan,ifname={tap},script=no,downscript=no"),
                "-device",
                &format!(
                    "virtio-net-pci,netdev=lan,mac=52:54:00:00:00:{:02x}",
                    self.number
                ),
                "-device",
                "virtio-serial",
                "-chardev",
                &format!(
                    "socket,id=agent,server=on,wait=off,path={}",
                    self.socket().display()
                ),
                "-device",
                "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
                "-object",
                "rng-random,id=rng,filename=/dev/urandom",
                "-device",
                "virtio-rng-pci,rng=rng",
            ]);
        on.daemon(&self.name, &mut qemu)
    }

    /// Waits until the machine runs programs.
    pub fn wait_up(&self, on: &Machine) -> Result<()> {
        let what = format!("{} boots", self.name);
        wait::within(BOOT, &what, || {
            on.check_daemons()?;
            Ok(GuestAgent::connect(&self.socket(), Duration::from_secs(5)).is_ok())
        })
        .with_context(|| on.log_tail(&self.name, 20))
    }

    /// Ends QEMU at once. The disk keeps what the machine has written to it.
    pub fn cut_power(&self, on: &Machine) -> Result<()> {
        on.kill_daemon(&self.name)?;
        fs::remove_file(self.socket()).context("removing the socket of QEMU that ended")
    }

    /// Sets name and address, as an installer does.
    pub fn configure(&self, prefix: u8, gateway: Ipv4Addr) -> Result<()> {
        self.write(
            "/etc/systemd/network/10-lan.network",
            &format!(
                "[Match]\nName=en*\n[Network]\nAddress={}/{prefix}\nGateway={gateway}\n",
                self.address
            ),
        )?;
        self.write("/etc/hostname", &format!("{}\n", self.name))?;
        self.write(
            "/etc/hosts",
            &format!("127.0.0.1 localhost\n{} {}\n", self.address, self.name),
        )?;
        self.shell("hostname --file /etc/hostname && networkctl reload")
            .map(drop)
    }

    /// Runs a shell script, expects that it succeeds, and returns what it prints.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.shell_within(RUN, script)
    }

    /// Does what [`VirtualMachine::shell`] does, for a script that may run for this time.
    pub fn shell_within(&self, max_wait: Duration, script: &str) -> Result<String> {
        self.run(&["/bin/sh", "-c", script], "", max_wait)
    }

    /// Writes a file, and makes its parent folders.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat > \"$1\"";
        self.run(&["/bin/sh", "-c", script, "sh", path], text, RUN)
            .map(drop)
    }

    /// Runs a shell script, and returns what it prints and its exit code.
    pub fn output(&self, script: &str) -> Result<Printed> {
        GuestAgent::connect(&self.socket(), Duration::from_secs(30))
            .and_then(|mut agent| agent.run(&["/bin/sh", "-c", script], "", RUN))
            .with_context(|| format!("`{script}` on {}", self.name))
    }

    fn run(&self, program: &[&str], input: &str, max_wait: Duration) -> Result<String> {
        let line = program.join(" ");
        let printed = GuestAgent::connect(&self.socket(), Duration::from_secs(30))
            .and_then(|mut agent| agent.run(program, input, max_wait))
            .with_context(|| format!("`{line}` on {}", self.name))?;
        if printed.code != 0 {
            bail!(
                "`{line}` on {} failed ({}): {}{}",
                self.name,
                printed.code,
                printed.stdout,
                printed.stderr
            );
        }
        Ok(printed.stdout)
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }
}
