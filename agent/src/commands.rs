//! The commands of `ipip-agent` that end by themselves: `--check`, `prepare` and `uninstall`.

pub mod check;
pub mod prepare;
pub mod uninstall;
