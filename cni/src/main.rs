//! cni
fn main() {}
