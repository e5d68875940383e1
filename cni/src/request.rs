//! The part of a call that does not depend on the verb or the container.

use crate::{conf::Conf, env, error::Error, version::Version};
use std::path::PathBuf;

/// The network configuration of a call, validated, and the folders of plugins.
pub struct Request {
    /// The network configuration.
    pub conf: Conf,
    /// The `cniVersion` of the configuration.
    pub version: Version,
    /// The bytes that were read from stdin; the IPAM plugin gets them, too.
    pub input: Vec<u8>,
    /// The folders of `CNI_PATH`.
    pub plugin_folders: Vec<PathBuf>,
}

impl Request {
    /// Validates `input`, a configuration of `version`, and reads `CNI_PATH`.
    ///
    /// # Errors
    /// Names the first invalid field of the configuration, or the missing `CNI_PATH`.
    pub fn new(input: Vec<u8>, version: Version) -> Result<Self, Error> {
        Ok(Self {
            conf: Conf::parse(&input)?,
            version,
            input,
            plugin_folders: env::plugin_folders()?,
        })
    }
}
