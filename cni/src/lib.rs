//! The CNI plugin. It needs the pinned datapath, but not a running agent.
//!
//! This file dispatches verbs; each verb is in the module of its name.

mod add;
mod args;
mod attachment;
mod check;
mod conf;
mod del;
mod env;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gc;
mod ipam;
mod leases;
mod lock;
mod pod_entry;
mod pod_link;
mod request;
mod result;
mod status;
mod version;

use env::{Container, Verb};
use error::Error;
use request::Request;
use serde_json::Value;
use std::{
    io::{self, Read, Write},
    process::ExitCode,
};
use version::Version;

/// Runs the verb of the environment with the configuration of stdin, and prints the answer.
pub fn main() -> ExitCode {
    let mut version = Version::NEWEST;
    let (answer, code) = match run(&mut version) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (Some(error.report(version)), ExitCode::FAILURE),
    };
    let Some(answer) = answer else {
        return code;
    };
    match writeln!(io::stdout(), "{answer}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs the verb and returns the object to print, if there is one. `version` is set to the version of the
/// configuration as soon as it is known, because errors are reported in that version too.
fn run(version: &mut Version) -> Result<Option<Value>, Error> {
    let Some(verb) = Verb::read()? else {
        return Ok(Some(version::supported()));
    };
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).map_err(Error::Input)?;
    *version = Version::of(&input)?;
    let request = Request::new(input, *version)?;
    match verb {
        Verb::Add => {
            let added = add::add(&request, &Container::read(verb)?)?;
            return Ok(Some(added.to_json(*version)));
        }
        Verb::Del => del::del(&request, &Container::read(verb)?)?,
        Verb::Check => check::check(&request, &Container::read(verb)?)?,
        Verb::Gc => gc::gc(&request)?,
        Verb::Status => status::status(&request)?,
    }
    Ok(None)
}
