//! Versions of the CNI specification.

use serde::Deserialize;
use serde_json::{Value, json};

/// A version that the plugin supports.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Version {
    /// 0.4.0: results contain the IP version of each address.
    V0_4_0,
    /// 1.0.0.
    V1_0_0,
    /// 1.1.0: results contain the MTU of interfaces; verbs GC and STATUS.
    V1_1_0,
}

/// Why a `cniVersion` was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cniVersion {:?} is not supported: use {}", .0, names())]
    Unsupported(String),
    #[error("{verb} came with cniVersion {}, which has no such verb: use 1.1.0", .version.name())]
    VerbTooNew {
        verb: &'static str,
        version: Version,
    },
    #[error("the network configuration cannot be decoded: {0}")]
    Decode(#[source] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawVersion {
    cni_version: Option<String>,
}

impl Version {
    /// All versions in ascending order.
    pub const ALL: [Self; 3] = [Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The version of an answer if the runtime's version is not known yet.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version in which a network configuration is written.
    pub fn of(input: &[u8]) -> Result<Self, Error> {
        let raw: RawVersion = serde_json::from_slice(input).map_err(Error::Decode)?;
        // The specification: a configuration without this field has version 0.1.0.
        let wanted = raw.cni_version.unwrap_or_else(|| "0.1.0".into());
        Self::ALL
            .into_iter()
            .find(|version| version.name() == wanted)
            .ok_or(Error::Unsupported(wanted))
    }

    /// Fails if the version is older than the newest, in which `verb` was introduced.
    pub fn expect_newest(self, verb: &'static str) -> Result<(), Error> {
        match self {
            Self::NEWEST => Ok(()),
            version => Err(Error::VerbTooNew { verb, version }),
        }
    }

    /// The version as the specification writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

/// The answer to VERSION.
pub fn supported() -> Value {
    json!({
        "cniVersion": Version::NEWEST.name(),
        "supportedVersions": Version::ALL.map(Version::name),
    })
}

fn names() -> String {
    Version::ALL.map(Version::name).join(", ")
}
