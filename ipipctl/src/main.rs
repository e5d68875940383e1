//! ipipctl
fn main() {}
