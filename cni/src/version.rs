//! Versions of the CNI specification.

use serde::Deserialize;
use serde_json::{Value, json};

/// A version that the plugin speaks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Version {
    /// 0.4.0: each address tells its IP version.
    V0_4_0,
    /// 1.0.0.
    V1_0_0,
    /// 1.1.0: interfaces and routes tell their MTU.
    V1_1_0,
}

/// Why a configuration is not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cniVersion {:?} is not spoken: use {}", .0, spoken())]
    Unspoken(String),
    #[error("{verb} came with cniVersion {}, which has no such verb: use 1.1.0", .version.name())]
    VerbOfLater {
        verb: &'static str,
        version: Version,
    },
    #[error("the network configuration cannot be understood: {0}")]
    Decode(#[source] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spoken {
    cni_version: Option<String>,
}

impl Version {
    /// In ascending order.
    pub const ALL: [Self; 3] = [Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What is spoken to a runtime that has not yet said what it speaks.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version in which a network configuration is written.
    pub fn of(input: &[u8]) -> Result<Self, Error> {
        let spoken: Spoken = serde_json::from_slice(input).map_err(Error::Decode)?;
        // A configuration without the field is of 0.1.0, says the specification.
        let spoken = spoken.cni_version.unwrap_or_else(|| "0.1.0".into());
        Self::ALL
            .into_iter()
            .find(|version| version.name() == spoken)
            .ok_or(Error::Unspoken(spoken))
    }

    /// Fails if a verb that came with the newest version is used in an older one.
    pub fn expect_newest(self, verb: &'static str) -> Result<(), Error> {
        match self {
            Self::NEWEST => Ok(()),
            version => Err(Error::VerbOfLater { verb, version }),
        }
    }

    /// As the specification writes it.
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

fn spoken() -> String {
    Version::ALL.map(Version::name).join(", ")
}
