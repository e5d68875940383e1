//! The CNI plugin. It stands alone: it needs the pinned datapath, not the agent.
//!
//! Entry and verbs only: what a verb does is in the module of its name.

mod add;
mod args;
mod attachment;
mod check;
mod conf;
mod del;
mod env;
mod error;
mod gc;
mod ipam;
mod leases;
mod lock;
mod pod_entry;
mod pod_link;
mod result;
mod status;
mod version;

use conf::Conf;
use env::{Container, Verb};
use error::Error;
use serde_json::Value;
use std::{
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
};
use version::Version;

/// What a verb works on.
struct Request {
    /// The network configuration.
    conf: Conf,
    /// Its version.
    version: Version,
    /// The same as it came in, for the IPAM plugin.
    input: Vec<u8>,
    /// Where plugins are.
    plugin_folders: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let mut spoken = Version::NEWEST;
    let (answer, code) = match run(&mut spoken) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (Some(error.report(spoken)), ExitCode::FAILURE),
    };
    let Some(answer) = answer else {
        return code;
    };
    match writeln!(io::stdout(), "{answer}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What to print, if anything. `spoken` becomes the version that the runtime speaks as soon as
/// that is known, so that errors speak it too.
fn run(spoken: &mut Version) -> Result<Option<Value>, Error> {
    let Some(verb) = Verb::read()? else {
        return Ok(Some(version::supported()));
    };
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).map_err(Error::Input)?;
    *spoken = Version::of(&input)?;
    let request = Request {
        conf: Conf::parse(&input)?,
        version: *spoken,
        input,
        plugin_folders: env::plugin_folders()?,
    };
    match verb {
        Verb::Add => {
            let added = add::add(&request, &Container::read(verb)?)?;
            return Ok(Some(added.to_json(*spoken)));
        }
        Verb::Del => del::del(&request, &Container::read(verb)?)?,
        Verb::Check => check::check(&request, &Container::read(verb)?)?,
        Verb::Gc => gc::gc(&request)?,
        Verb::Status => status::status(&request)?,
    }
    Ok(None)
}
