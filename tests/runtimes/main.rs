//! The CNI plugin under real container runtimes, with the list that a real agent wrote. Each test's name is the
//! sentence it proves. Needs root, and the programs that `cargo xtask test runtimes` builds.

mod bandwidth;
mod cnitool;
mod containerd;
mod cri;
mod podman;
mod runtime_node;
