//! The subcommands of `ipip-agent`, apart from running as a daemon.

pub mod check;
pub mod prepare;
pub mod uninstall;
