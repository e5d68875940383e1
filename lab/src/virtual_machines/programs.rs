//! The disk with the programs and images that every machine reads.

use crate::kubernetes::Tools;
use anyhow::{Context, Result};
use ipip_testkit::shell;
use std::{
    fs,
    path::{Path, PathBuf},
};

const PROGRAMS: [&str; 3] = ["kubelet", "kubeadm", "kube-proxy"];

/// Images, by the names of their files.
pub const IMAGES: [&str; 4] = ["pause", "busybox", "coredns", "ipip"];

/// Makes the disk, with the label `programs`, in `folder`.
pub fn disk(tools: &Tools, folder: &Path) -> Result<PathBuf> {
    let content = folder.join("programs");
    fs::create_dir_all(&content)?;
    for program in PROGRAMS {
        copy(&tools.program(program), &content.join(program))?;
    }
    for image in IMAGES {
        let tar = format!("{image}.tar");
        copy(&tools.image(image)?, &content.join(tar))?;
    }
    let disk = folder.join("programs.img");
    fs::File::create(&disk)?.set_len(1 << 30)?;
    shell::run(&format!(
        "mkfs.ext4 -q -F -L programs -O ^has_journal -d {} {}",
        content.display(),
        disk.display()
    ))?;
    fs::remove_dir_all(&content)?;
    Ok(disk)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {}", from.display()))
}
