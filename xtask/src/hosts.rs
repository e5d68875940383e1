//! The machines of the areas `hosts` and `hosts-all`: for each kernel a disk with Debian 12, made once, in the tools'
//! cache.

use crate::{
    command::{as_root, is_installed, run},
    image, kernels,
    setup::{self, Need},
    tools,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Debian 12's kernel, and that of its backports. The area `hosts` has only the first.
const VERSIONS: [&str; 2] = ["6.1", "6.12"];

/// Change it when a disk is made in another way: disks of another revision are replaced.
const REVISION: &str = "1";

/// Programs that make a disk or run a machine, and the packages that bring them.
const PROGRAMS: [(&str, &str); 4] = [
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    (kernels::QEMU, "qemu-system-x86"),
    ("busybox", "busybox-static"),
];

/// The packages of a machine beside Debian's essential ones and its kernel.
const PACKAGES: &str = "systemd-sysv,dbus,udev,kmod,apparmor,containerd,runc,iproute2,iptables,\
                        conntrack,ethtool,procps,qemu-guest-agent,iputils-ping";

/// Programs of `cargo xtask tools` that the tests run, here and on the machines.
const TOOLS: [&str; 9] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubeadm",
    "kubelet",
    "kube-proxy",
    "coredns",
];

/// What a fresh Debian lacks to become a node. mmdebstrap runs it with the disk's folder as its argument.
const CUSTOMIZE: &str = include_str!("hosts/customize.sh");

/// Prepares the disk of the first kernel, and the programs and images that the machines run.
pub fn prepare() -> Result<()> {
    prepare_for(&VERSIONS[..1])
}

/// Prepares the disks of all kernels, and the programs and images that the machines run, with those of
/// `kubeadm init`.
pub fn prepare_all() -> Result<()> {
    prepare_for(&VERSIONS)?;
    image::kubeadm()
}

fn prepare_for(versions: &[&str]) -> Result<()> {
    ensure!(
        tools::native_arch() == "amd64",
        "the areas hosts and hosts-all need an amd64 machine: their disks and kernels are for that"
    );
    setup::require(&[Need::Compiler, Need::Ebpf, Need::Lab, Need::Bpffs])?;
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    packages.extend(kernels::missing_package());
    packages.extend(tools::missing_packages());
    setup::packages(&packages)?;
    tools::prepare(&TOOLS)?;
    image::lab()?;
    image::product(&[image::Arch::native()])?;
    disks(versions)
}

/// Makes the missing disks.
fn disks(versions: &[&str]) -> Result<()> {
    let folder = tools::root()?.join("hosts");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    // Two processes must not make the same disk.
    let lock = File::create(folder.join("lock")).context("making the lock of the disks")?;
    lock.lock().context("locking the disks")?;
    for version in versions {
        let disk = folder.join(version);
        let revision = fs::read_to_string(disk.join("revision")).unwrap_or_default();
        if revision != REVISION {
            make(version, &disk)
                .with_context(|| format!("making a disk with Debian 12 and Linux {version}"))?;
        }
    }
    Ok(())
}

/// Fills a temporary folder; renaming it makes it valid.
fn make(version: &str, folder: &Path) -> Result<()> {
    let work = folder.with_file_name(format!("{version}-making"));
    run(&mut as_root("rm", &["-rf", text(&work)?]))?;
    fs::create_dir_all(&work)?;
    let root = work.join("root");
    let customize = work.join("customize.sh");
    fs::write(&customize, CUSTOMIZE)?;
    fs::set_permissions(&customize, fs::Permissions::from_mode(0o755))?;
    let kernel = kernels::chosen(&[version.into()])?
        .pop()
        .context("no such kernel")?;
    let include = format!("--include={PACKAGES},{}", kernel.package);
    let hook = format!("--customize-hook={}", text(&customize)?);
    let source = |archive: &str, suite: &str| {
        format!(
            "deb [signed-by={}] http://deb.debian.org/{archive} {suite} main",
            kernels::KEYRING
        )
    };
    run(&mut as_root(
        "mmdebstrap",
        &[
            "--mode=root",
            "--variant=minbase",
            "--architectures=amd64",
            "--format=directory",
            "--aptopt=Apt::Install-Recommends \"false\"",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            // Without this choice the initramfs has every driver, and an emulated machine unpacks it slowly.
            "--essential-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\" \
             && echo MODULES=list > \"$1/etc/initramfs-tools/conf.d/small\" \
             && printf 'virtio_pci\\nvirtio_blk\\next4\\n' > \"$1/etc/initramfs-tools/modules\"",
            &include,
            &hook,
            "bookworm",
            text(&root)?,
            &source("debian", "bookworm"),
            &source("debian-security", "bookworm-security"),
        ],
    ))?;
    let done = work.join("done");
    fs::create_dir_all(&done)?;
    let disk = done.join("disk.img");
    // Sparse: it takes what the files take.
    File::create(&disk)?.set_len(6 << 30)?;
    run(&mut as_root(
        "mkfs.ext4",
        &["-q", "-F", "-d", text(&root)?, text(&disk)?],
    ))?;
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        let from = kernels::find(&root.join("boot"), prefix)?
            .with_context(|| format!("the disk has no /boot/{prefix}*"))?;
        let to = done.join(name);
        run(&mut as_root(
            "install",
            &["-m", "644", text(&from)?, text(&to)?],
        ))?;
    }
    fs::write(done.join("revision"), REVISION)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&done, folder).with_context(|| format!("making {}", folder.display()))?;
    run(&mut as_root("rm", &["-rf", text(&work)?]))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
