//! Finds the eBPF object that `cargo xtask build-ebpf` leaves in the target folder.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=IPIP_EBPF_OBJECT");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    let object = env::var_os("IPIP_EBPF_OBJECT").map_or_else(
        || {
            let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
                || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"),
                PathBuf::from,
            );
            target.join("ebpf/ipip.o")
        },
        PathBuf::from,
    );
    println!("cargo:rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo:rustc-env=IPIP_EBPF_OBJECT={}", object.display()),
        Err(error) => {
            println!(
                "cargo:error=no eBPF object at {}: {error}. Build it with `cargo xtask build-ebpf`.",
                object.display()
            );
        }
    }
}
