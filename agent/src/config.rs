//! The agent's settings.
//!
//! `settings.rs` declares each setting once. From this table come the fields of [`Config`], the keys
//! of the file, the environment variables and the flags with their help, the validation and its
//! error texts, and the file that `ipip-agent --print-default-config` prints.

mod default_file;
mod error;
mod parsers;
mod settings;
mod sources;

pub use default_file::default_file;
pub use error::{ConfigError, InvalidSetting, Origin};
pub use parsers::{ForeignIpip, LearnedEndpoint, LogFormat, NodeSourceKind};
pub use settings::{Config, validate};
pub use sources::{Texts, load, with_flags};

/// The configuration of the node `node_name` with these settings, for tests.
#[cfg(test)]
pub fn from_pairs(node_name: &str, pairs: &[(&'static str, &str)]) -> Config {
    let texts = pairs
        .iter()
        .map(|(key, text)| (*key, ((*text).to_owned(), Origin::Default)));
    validate(texts.collect(), node_name).unwrap()
}

#[cfg(test)]
mod tests;
