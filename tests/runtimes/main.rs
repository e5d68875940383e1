//! The CNI plugin under real container runtimes, with a real agent's list of plugins. Each test's name
//! is the sentence it proves.

mod containerd;
mod cri;
mod runtime_node;
