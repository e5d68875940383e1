//! The disk with the programs and images that every machine reads.

use crate::kubernetes::Tools;
use anyhow::{Context, Result};
use ipip_testkit::shell;
use std::{
    fs,
    path::{Path, PathBuf},
};

const PROGRAMS: [&str; 3] = ["kubelet", "kubeadm", "kube-proxy"];

/// Makes the disk, with the label `programs`, in `folder`. `images` are the names of their files.
pub fn disk(tools: &Tools, images: &[&str], folder: &Path) -> Result<PathBuf> {
    let content = folder.join("programs");
    fs::create_dir_all(&content)?;
    for program in PROGRAMS {
        copy(&tools.program(program), &content.join(program))?;
    }
    for image in images {
        let tar = format!("{image}.tar");
        copy(&tools.image(image)?, &content.join(tar))?;
    }
    let disk = folder.join("programs.img");
    // Sparse: it takes what the files take.
    fs::File::create(&disk)?.set_len(2 << 30)?;
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
