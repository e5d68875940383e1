//! The oldest kernel and the oldest Kubernetes that the agent supports.

use std::{fmt, fs};

/// The first kernel with `bpf_redirect_peer()`. No older kernel is tested.
pub const MINIMUM_KERNEL: Version = Version(5, 10);
/// The first version in which admission policies (`ValidatingAdmissionPolicy` of
/// `admissionregistration.k8s.io/v1`) are stable and pods have the field `appArmorProfile`. Without admission
/// policies a compromised node could claim other nodes' addresses.
pub const MINIMUM_KUBERNETES: Version = Version(1, 30);

/// Major and minor version.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Reads texts like `6.1.0-18-cloud-amd64`, `v1.29.6-gke.1` and `1.30+`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || {
            let part = parts.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit());
            part[..end.unwrap_or(part.len())].parse().ok()
        };
        Some(Self(number()?, number()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A version is older than the minimum.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TooOld {
    /// The kernel of this host.
    #[error(
        "kernel: Linux {0:?} (uname -r) is too old; remedy: run Linux {MINIMUM_KERNEL} or newer on this node"
    )]
    Kernel(String),
    /// The API server.
    #[error(
        "kubernetes: {0:?} (version of the API server) is too old, it lacks the admission policies that keep a node from claiming another node's addresses; remedy: upgrade to Kubernetes {MINIMUM_KUBERNETES} or newer"
    )]
    Kubernetes(String),
}

/// Checks the running kernel.
///
/// # Errors
/// It is older than [`MINIMUM_KERNEL`]. An unreadable version is no error.
pub fn check_kernel() -> Result<(), TooOld> {
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => kernel(release.trim()),
        Err(_) => Ok(()),
    }
}

fn kernel(release: &str) -> Result<(), TooOld> {
    if is_older(release, MINIMUM_KERNEL) {
        return Err(TooOld::Kernel(release.to_owned()));
    }
    Ok(())
}

/// Checks the version of an API server, such as `v1.30.2+k3s1`.
///
/// # Errors
/// It is older than [`MINIMUM_KUBERNETES`]. An unreadable version is no error.
pub fn kubernetes(version: &str) -> Result<(), TooOld> {
    if is_older(version, MINIMUM_KUBERNETES) {
        return Err(TooOld::Kubernetes(version.to_owned()));
    }
    Ok(())
}

fn is_older(text: &str, minimum: Version) -> bool {
    Version::parse(text).is_some_and(|version| version < minimum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_before_5_10_is_refused_with_its_remedy() {
        for old in [
            "5.9.16",
            "5.4.0-150-generic",
            "4.18.0-553.el8_10.x86_64",
            "3.10.0",
        ] {
            let refusal = kernel(old).unwrap_err().to_string();
            assert!(refusal.contains(&format!("{old:?}")), "{refusal}");
            assert!(
                refusal.contains("remedy: run Linux 5.10 or newer"),
                "{refusal}"
            );
        }
        for new in [
            "5.10.0-32-amd64",
            "5.15.0",
            "6.1.0-18-cloud-amd64",
            "6.18-rc1",
            "10.0",
        ] {
            kernel(new).unwrap();
        }
    }

    #[test]
    fn kubernetes_before_1_30_is_refused_with_its_remedy() {
        for old in ["v1.29.6-gke.1", "1.29+", "v1.9.0", "0.30"] {
            let refusal = kubernetes(old).unwrap_err().to_string();
            assert!(refusal.contains(&format!("{old:?}")), "{refusal}");
            assert!(
                refusal.contains("remedy: upgrade to Kubernetes 1.30 or newer"),
                "{refusal}"
            );
        }
        for new in [
            "1.30+",
            "v1.30.0",
            "v1.30.2+k3s1",
            "v1.34.1-eks-3025e55",
            "v2.0.0",
        ] {
            kubernetes(new).unwrap();
        }
    }

    #[test]
    fn an_unreadable_version_is_not_refused() {
        for text in ["", "v", "latest", "5", "v1", "1.x"] {
            assert_eq!(Version::parse(text), None, "{text}");
            kernel(text).unwrap();
            kubernetes(text).unwrap();
        }
    }

    #[test]
    fn the_running_kernel_is_supported() {
        check_kernel().unwrap();
    }
}
