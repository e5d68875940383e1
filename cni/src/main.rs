//! The CNI plugin. It stands alone: it needs the pinned datapath, not the agent.
//!
//! Entry and verbs only: what a verb does is in the module of its name.

mod add;
mod check;
mod conf;
mod del;
mod env;
mod error;
mod ipam;
mod pod_entry;
mod pod_link;
mod result;
mod version;

use conf::Conf;
use env::{Environment, Verb};
use error::Error;
use std::{
    io::{self, Read, Write},
    process::ExitCode,
};
use version::Version;

/// What a verb works on.
struct Request {
    /// What the runtime says of the container.
    env: Environment,
    /// The network configuration.
    conf: Conf,
    /// The same as it came in, for the IPAM plugin.
    input: Vec<u8>,
}

fn main() -> ExitCode {
    let mut input = Vec::new();
    let mut spoken = Version::NEWEST;
    let outcome = io::stdin()
        .read_to_end(&mut input)
        .map_err(Error::Input)
        .and_then(|_| run(input, &mut spoken));
    let (answer, code) = match outcome {
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
fn run(input: Vec<u8>, spoken: &mut Version) -> Result<Option<serde_json::Value>, Error> {
    let verb = Verb::read()?;
    if verb == Verb::Version {
        return Ok(Some(version::supported(&input)));
    }
    *spoken = Version::of(&input)?;
    let conf = Conf::parse(&input, *spoken)?;
    let env = Environment::read(verb)?;
    let request = Request { env, conf, input };
    match verb {
        Verb::Add => add::add(&request).map(|result| Some(result.to_json(*spoken))),
        Verb::Del => del::del(&request).map(|()| None),
        Verb::Check => check::check(&request).map(|()| None),
        Verb::Version => Ok(None),
    }
}
