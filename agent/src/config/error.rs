//! Errors in the settings.

use std::{fmt, io, path::PathBuf};

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {path}: {source}; remedy: correct --config or the file's permissions"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not YAML of the expected form.
    #[error(
        "{path}, line {line} ({text:?}): {message}; remedy: correct this line, `ipip-agent --print-default-config` prints every key"
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: u64,
        /// The line.
        text: String,
        /// The parser's message.
        message: String,
    },
    /// Settings have values that cannot be used.
    #[error("{}", join(.0))]
    Values(Vec<InvalidSetting>),
}

/// A setting whose value cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidSetting {
    /// The key as in the file.
    pub key: &'static str,
    /// The given value.
    pub value: String,
    /// The origin of the value.
    pub origin: Origin,
    /// The values that can be used.
    pub values: &'static str,
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            value,
            origin,
            values,
        } = self;
        write!(
            f,
            "{key}: {value:?} ({origin}) cannot be used; remedy: {values}"
        )
    }
}

/// The origin of a setting's value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// It is the default.
    Default,
    /// The file, at this line (from 1).
    File(u64),
    /// The environment variable of this name.
    Environment(String),
    /// The flag of this name.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(line) => write!(f, "line {line} of the configuration file"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

fn join(invalid: &[InvalidSetting]) -> String {
    let texts: Vec<String> = invalid.iter().map(ToString::to_string).collect();
    texts.join("\n")
}
