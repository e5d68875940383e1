//! The delegated IPAM plugin: found in `CNI_PATH`, called with the plugin's own input and environment
//! (CNI specification, "Plugin delegation").

use crate::{
    attachment::Attachment, conf::Conf, env::Container, error::Error, leases::Leases,
    request::Request, version::Version,
};
use ipip_abi::{Addr, is_never_a_pod_address};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;
use std::{
    borrow::Cow,
    io::{self, Write},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// The error code that is reported if a failed plugin returns none.
const GENERIC_FAILURE: u64 = 102;
/// Error code of the CNI specification: the plugin does not support the `cniVersion`.
const INCOMPATIBLE_VERSION: u64 = 1;

/// The result of the plugin's ADD.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lease {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Settings of the pod's resolver.
    pub dns: Option<Value>,
}

/// The plugin of one request.
pub struct Ipam<'a> {
    request: &'a Request,
    path: PathBuf,
    /// The configuration that it gets.
    input: Cow<'a, [u8]>,
}

/// An ADD of the plugin in progress.
pub struct Allocation<'a> {
    ipam: &'a Ipam<'a>,
    child: Child,
    attachment: &'a Attachment,
}

/// A DEL of the plugin in progress.
pub struct Release<'a> {
    ipam: &'a Ipam<'a>,
    child: Child,
    attachment: &'a Attachment,
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
#[serde(rename_all = "camelCase")]
struct Versions {
    supported_versions: Vec<String>,
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
    /// Finds the plugin in the folders of `CNI_PATH`.
    pub fn find(request: &'a Request) -> Result<Self, Error> {
        let plugin = &request.conf.ipam;
        let folders = &request.plugin_folders;
        match folders
            .iter()
            .map(|folder| folder.join(plugin))
            .find(|path| path.is_file())
        {
            Some(path) => Ok(Self {
                request,
                path,
                input: Cow::Borrowed(&request.input),
            }),
            None => {
                let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
                Err(Error::IpamAbsent {
                    plugin: plugin.clone(),
                    folders: folders.join(", "),
                })
            }
        }
    }

    /// Starts the plugin's ADD without waiting for it.
    pub fn start_add(&'a self, container: &'a Container) -> Result<Allocation<'a>, Error> {
        let attachment = &container.attachment;
        Ok(Allocation {
            child: self.start("ADD", Some(attachment), &self.input)?,
            ipam: self,
            attachment,
        })
    }

    /// Releases the container's addresses. If it has none, this is no error.
    pub fn del(&self, attachment: &Attachment) -> Result<(), Error> {
        self.start_del(attachment)?.finish()
    }

    /// Starts the plugin's DEL without waiting for it.
    pub fn start_del<'b>(&'b self, attachment: &'b Attachment) -> Result<Release<'b>, Error> {
        Ok(Release {
            child: self.start("DEL", Some(attachment), &self.input)?,
            ipam: self,
            attachment,
        })
    }

    /// Releases the addresses of attachments that `is_stale`, if host-local keeps their leases in another folder than
    /// that of the configuration. Returns every error.
    pub fn del_elsewhere(&self, is_stale: impl Fn(&Attachment) -> bool) -> Vec<Error> {
        let mut errors = Vec::new();
        for (folder, leases) in Leases::elsewhere(&self.request.conf) {
            let released = leases.holders().and_then(|mut holders| {
                holders.retain(&is_stale);
                if holders.is_empty() {
                    return Ok(());
                }
                let there = self.with_leases_in(folder)?;
                let deleted = holders.iter().map(|it| there.del(it));
                let mut failed: Vec<Error> = deleted.filter_map(Result::err).collect();
                failed.extend(leases.expect_none_of(&is_stale).err());
                Error::all(failed)
            });
            errors.extend(released.err());
        }
        errors
    }

    /// Fails if the plugin has no address for the container.
    pub fn check(&self, container: &Container) -> Result<(), Error> {
        let attachment = &container.attachment;
        for (folder, leases) in Leases::elsewhere(&self.request.conf) {
            if leases.holders()?.contains(attachment) {
                let there = self.with_leases_in(folder)?;
                return there.call("CHECK", Some(attachment)).map(drop);
            }
        }
        self.call("CHECK", Some(attachment)).map(drop)
    }

    /// The same plugin with its leases in another folder.
    fn with_leases_in(&self, folder: &Path) -> Result<Self, Error> {
        Ok(Self {
            request: self.request,
            path: self.path.clone(),
            input: Cow::Owned(with_data_dir(&self.input, folder)?),
        })
    }

    /// Asks the plugin to release the addresses of all attachments that are not in the input's list.
    /// Skipped for a plugin that is older than this verb.
    pub fn gc(&self) -> Result<(), Error> {
        self.call_if_known("GC")
    }

    /// Fails if the plugin reports that it cannot assign addresses. Skipped for a plugin that is older
    /// than this verb.
    pub fn status(&self) -> Result<(), Error> {
        self.call_if_known("STATUS")
    }

    /// Calls the plugin if it supports the newest version. A plugin has no specific error for an
    /// unknown verb, so its supported versions are queried first.
    fn call_if_known(&self, verb: &str) -> Result<(), Error> {
        let printed = self.call("VERSION", None)?;
        let versions: Versions =
            serde_json::from_slice(&printed).map_err(|e| invalid_answer(&self.request.conf, &e))?;
        let newest = Version::NEWEST.name();
        if versions.supported_versions.iter().any(|it| it == newest) {
            self.call(verb, None)?;
        }
        Ok(())
    }

    fn call(&self, verb: &str, attachment: Option<&Attachment>) -> Result<Vec<u8>, Error> {
        let child = self.start(verb, attachment, &self.input)?;
        self.finish(child, verb, attachment)
    }

    /// Waits for the answer. If the plugin does not support the version of the configuration, it is
    /// called again in version 1.0.0, which has the verbs ADD, DEL and CHECK too.
    fn finish(
        &self,
        child: Child,
        verb: &str,
        attachment: Option<&Attachment>,
    ) -> Result<Vec<u8>, Error> {
        match self.verdict(self.wait(child)?) {
            Err(Error::IpamFailed {
                code: INCOMPATIBLE_VERSION,
                ..
            }) if self.request.version > Version::V1_0_0 => {
                let older = older_input(&self.input)?;
                self.verdict(self.wait(self.start(verb, attachment, &older)?)?)
            }
            verdict => verdict,
        }
    }

    fn start(
        &self,
        verb: &str,
        attachment: Option<&Attachment>,
        input: &[u8],
    ) -> Result<Child, Error> {
        let mut command = Command::new(&self.path);
        command
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal to this process group must not interrupt the plugin while it writes a lease.
            .process_group(0);
        if let Some(attachment) = attachment {
            command
                .env("CNI_CONTAINERID", &attachment.container_id)
                .env("CNI_IFNAME", &attachment.ifname);
        }
        let started = command.spawn().and_then(|mut child| {
            if let Some(mut stdin) = child.stdin.take() {
                match stdin.write_all(input) {
                    // A plugin need not read its whole input; its answer is more informative.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                    written => written?,
                }
            }
            Ok(child)
        });
        started.map_err(|source| self.cannot_run(source))
    }

    fn wait(&self, child: Child) -> Result<Output, Error> {
        child
            .wait_with_output()
            .map_err(|source| self.cannot_run(source))
    }

    /// The printed result of a successful plugin, or the error of a failed one.
    fn verdict(&self, output: Output) -> Result<Vec<u8>, Error> {
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failure(&output))
    }

    fn cannot_run(&self, source: io::Error) -> Error {
        Error::IpamRun {
            path: self.path.clone(),
            source,
        }
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
}

impl Allocation<'_> {
    /// Waits for the plugin. It may have assigned an address even if this fails.
    pub fn finish(self) -> Result<Lease, Error> {
        let printed = self.ipam.finish(self.child, "ADD", Some(self.attachment))?;
        lease(&self.ipam.request.conf, &printed)
    }
}

impl Release<'_> {
    /// Waits for the plugin.
    pub fn finish(self) -> Result<(), Error> {
        let done = self.ipam.finish(self.child, "DEL", Some(self.attachment));
        done.map(drop)
    }
}

/// Reads the printed result of ADD.
pub fn lease(conf: &Conf, printed: &[u8]) -> Result<Lease, Error> {
    let answer: Answer = serde_json::from_slice(printed).map_err(|e| invalid_answer(conf, &e))?;
    let address = one_address(&answer.ips)?;
    let wanted = &conf.wanted_ips;
    let is_wanted = |text: &String| {
        let text = text.split('/').next().unwrap_or_default();
        text.parse() == Ok(address)
    };
    if !wanted.is_empty() && !wanted.iter().any(is_wanted) {
        return Err(Error::IpamOtherAddress {
            plugin: conf.ipam.clone(),
            address,
            wanted: wanted.join(", "),
        });
    }
    // host-local prints an empty object if no resolver is configured.
    let dns = answer
        .dns
        .filter(|dns| dns.as_object().is_none_or(|dns| !dns.is_empty()));
    Ok(Lease {
        address,
        dns: dns.or_else(|| conf.dns.clone()),
    })
}

fn invalid_answer(conf: &Conf, error: &serde_json::Error) -> Error {
    Error::IpamAnswer {
        plugin: conf.ipam.clone(),
        reason: error.to_string(),
    }
}

/// The input converted to version 1.0.0. `prevResult` is left out because it must have the same
/// version; IPAM plugins find addresses by the container and do not need it.
pub fn older_input(input: &[u8]) -> Result<Vec<u8>, Error> {
    let mut conf: Value = serde_json::from_slice(input).map_err(Error::Decode)?;
    conf["cniVersion"] = Version::V1_0_0.name().into();
    if let Some(conf) = conf.as_object_mut() {
        conf.remove("prevResult");
    }
    Ok(conf.to_string().into_bytes())
}

/// The input with this folder as `ipam.dataDir`.
pub fn with_data_dir(input: &[u8], folder: &Path) -> Result<Vec<u8>, Error> {
    let mut conf: Value = serde_json::from_slice(input).map_err(Error::Decode)?;
    conf["ipam"]["dataDir"] = folder.display().to_string().into();
    Ok(conf.to_string().into_bytes())
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
    fn exactly_one_ipv4_address_that_is_valid_for_a_pod_is_accepted() {
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
