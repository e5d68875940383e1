//! The texts of the settings: from the file, then the environment, then the flags. Later sources win.

use super::{
    error::{ConfigError, Origin},
    settings::{Config, File, SETTINGS, Setting, validate},
};
use crate::yaml;
use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The given text of each key, and its origin.
pub type Texts = BTreeMap<&'static str, (String, Origin)>;

/// A single value of the file.
#[derive(Deserialize)]
pub struct Scalar(Spanned<String>);

impl Scalar {
    pub const IS_LIST: bool = false;
}

impl From<Scalar> for (String, Origin) {
    fn from(Scalar(text): Scalar) -> Self {
        (text.value, Origin::File(text.referenced.line()))
    }
}

/// A list of the file; its text has commas between the elements, as in flags and variables.
#[derive(Deserialize)]
pub struct List(Vec<Spanned<String>>);

impl List {
    pub const IS_LIST: bool = true;
}

impl From<List> for (String, Origin) {
    fn from(List(texts): List) -> Self {
        let line = texts.first().map_or(0, |text| text.referenced.line());
        let texts: Vec<String> = texts.into_iter().map(|text| text.value).collect();
        (texts.join(","), Origin::File(line))
    }
}

/// Adds `--config` and a flag for each setting to `command`.
pub fn with_flags(command: Command) -> Command {
    let config = Arg::new("config")
        .long("config")
        .env("IPIP_CONFIG")
        .global(true)
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Configuration file in YAML, with the settings below as keys in camelCase");
    SETTINGS
        .iter()
        .fold(command.arg(config), |command, setting| {
            command.arg(
                Arg::new(setting.key)
                    .long(setting.flag())
                    .env(setting.variable())
                    .global(true)
                    .action(ArgAction::Set)
                    .value_name(if setting.is_list { "LIST" } else { "VALUE" })
                    .help(help(setting)),
            )
        })
}

fn help(setting: &Setting) -> String {
    let doc: Vec<&str> = setting.doc.iter().map(|line| line.trim()).collect();
    let list = if setting.is_list {
        ", with commas between"
    } else {
        ""
    };
    format!(
        "{} Values: {}{list} [default: {}]",
        doc.join(" "),
        setting.values,
        setting.default_text()
    )
}

/// Reads the file that `matches` names, replaces its values by those of the environment and the
/// flags, and validates them. `host_name` is the default of `nodeName`.
///
/// # Errors
/// The file cannot be read or does not have the expected form, or values cannot be used.
pub fn load(matches: &ArgMatches, host_name: &str) -> Result<Config, ConfigError> {
    let mut texts = match matches.get_one::<PathBuf>("config") {
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?;
            parse_file(path, &text)?
        }
        None => Texts::new(),
    };
    for setting in SETTINGS {
        let origin = match matches.value_source(setting.key) {
            Some(ValueSource::CommandLine) => Origin::Flag(setting.flag()),
            Some(ValueSource::EnvVariable) => Origin::Environment(setting.variable()),
            _ => continue,
        };
        if let Some(text) = matches.get_one::<String>(setting.key) {
            texts.insert(setting.key, (text.clone(), origin));
        }
    }
    validate(texts, host_name)
}

/// The settings of the configuration file at `path`, whose content is `text`.
///
/// # Errors
/// The text is not YAML, has an unknown key, or a value that is not of the expected form.
pub fn parse_file(path: &Path, text: &str) -> Result<Texts, ConfigError> {
    let is_empty = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_empty) {
        return Ok(Texts::new());
    }
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        ConfigError::Form {
            path: path.to_owned(),
            line,
            text: yaml::line(text, line),
            message: error.without_snippet().to_string(),
        }
    })?;
    Ok(file.into_texts())
}
