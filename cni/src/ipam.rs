//! The delegated IPAM plugin: found in `CNI_PATH`, called with our own input and environment.

use crate::{Request, error::Error};
use ipip_abi::{Addr, is_never_a_pod_address};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;
use std::{
    io::{self, Write},
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// What a failed plugin's number is if it gives none.
const GENERIC_FAILURE: u64 = 102;

/// What the plugin gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lease {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// What its resolver is told.
    pub dns: Option<Value>,
}

/// The plugin of one request.
pub struct Ipam<'a> {
    request: &'a Request,
    path: PathBuf,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ips: Vec<AnswerIp>,
    dns: Option<Value>,
}

#[derive(Deserialize)]
struct AnswerIp {
    address: IpNetwork,
}

#[derive(Deserialize)]
struct Failure {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl<'a> Ipam<'a> {
    /// Finds the plugin.
    pub fn find(request: &'a Request) -> Result<Self, Error> {
        let plugin = &request.conf.ipam;
        let folders = &request.env.plugin_folders;
        match folders
            .iter()
            .map(|folder| folder.join(plugin))
            .find(|path| path.is_file())
        {
            Some(path) => Ok(Self { request, path }),
            None => {
                let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
                Err(Error::IpamAbsent {
                    plugin: plugin.clone(),
                    folders: folders.join(", "),
                })
            }
        }
    }

    /// Takes an address. The plugin may have taken one even if this fails.
    pub fn add(&self) -> Result<Lease, Error> {
        self.lease(&self.call("ADD")?)
    }

    /// Gives back what the container has; fine if that is nothing.
    pub fn del(&self) -> Result<(), Error> {
        self.call("DEL").map(drop)
    }

    /// Whether the plugin still knows of the container.
    pub fn check(&self) -> Result<(), Error> {
        self.call("CHECK").map(drop)
    }

    fn call(&self, verb: &str) -> Result<Vec<u8>, Error> {
        let output = self.run(verb).map_err(|source| Error::IpamRun {
            path: self.path.clone(),
            source,
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failure(&output))
    }

    fn run(&self, verb: &str) -> io::Result<Output> {
        let mut child = Command::new(&self.path)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(&self.request.input) {
                // It need not read all; its answer tells more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        child.wait_with_output()
    }

    fn failure(&self, output: &Output) -> Error {
        let (code, message) = match serde_json::from_slice::<Failure>(&output.stdout) {
            Ok(failure) if failure.details.is_empty() => (failure.code, failure.msg),
            Ok(failure) => (
                failure.code,
                format!("{}: {}", failure.msg, failure.details),
            ),
            Err(_) => {
                let text = String::from_utf8_lossy(&output.stderr);
                (
                    GENERIC_FAILURE,
                    format!("{}: {}", output.status, text.trim()),
                )
            }
        };
        Error::IpamFailed {
            plugin: self.request.conf.ipam.clone(),
            code,
            message,
        }
    }

    fn lease(&self, printed: &[u8]) -> Result<Lease, Error> {
        let answer: Answer = serde_json::from_slice(printed).map_err(|e| Error::IpamAnswer {
            plugin: self.request.conf.ipam.clone(),
            reason: e.to_string(),
        })?;
        let address = one_address(&answer.ips)?;
        // host-local prints an empty object where nothing is configured.
        let dns = answer
            .dns
            .filter(|dns| dns.as_object().is_none_or(|dns| !dns.is_empty()));
        Ok(Lease {
            address,
            dns: dns.or_else(|| self.request.conf.dns.clone()),
        })
    }
}

fn one_address(ips: &[AnswerIp]) -> Result<Ipv4Addr, Error> {
    if let [
        AnswerIp {
            address: IpNetwork::V4(network),
        },
    ] = ips
        && !is_never_a_pod_address(Addr::from(network.ip()))
    {
        return Ok(network.ip());
    }
    let given: Vec<_> = ips.iter().map(|ip| ip.address.to_string()).collect();
    Err(Error::IpamAddress(match given.len() {
        0 => "none".into(),
        _ => given.join(", "),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_ipv4_address_that_may_travel_is_taken() {
        let of = |addresses: &[&str]| {
            let ips: Vec<_> = addresses
                .iter()
                .map(|address| AnswerIp {
                    address: address.parse().unwrap(),
                })
                .collect();
            one_address(&ips)
        };
        assert_eq!(of(&["10.42.1.5/24"]).unwrap(), Ipv4Addr::new(10, 42, 1, 5));
        for (bad, named) in [
            (&[][..], "none"),
            (
                &["10.42.1.5/24", "10.42.1.6/24"],
                "10.42.1.5/24, 10.42.1.6/24",
            ),
            (&["fd00::1/64"], "fd00::1/64"),
            (&["127.0.0.5/8"], "127.0.0.5/8"),
            (&["169.254.3.3/16"], "169.254.3.3/16"),
        ] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
