//! The CNI plugin and the list that a real agent wrote, under real container runtimes. Each test's
//! name is the sentence it proves. Needs root, and what `cargo xtask test runtimes` prepares.

mod bandwidth;
mod cnitool;
mod containerd;
mod cri;
mod podman;
mod runtime_node;
