//! The five programs.

use crate::UnknownCode;
use core::fmt;

/// A program, with the stable code that it has in drop events. Its name says where its packets come from, or, for
/// `to_pod`, where they go.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Program {
    /// Packets that a pod sends.
    FromPod = 0,
    /// Packets that the host stack routes to peers.
    FromHost = 1,
    /// Packets that arrive on an uplink, from peers and from other hosts.
    FromUplink = 2,
    /// Packets that the host stack sends to a pod.
    ToPod = 3,
    /// Segments of GSO packets that `FromHost` could not encapsulate whole. `ipip0` segmented them on their way to its
    /// far end.
    FromFarEnd = 4,
}

/// The direction in which a program sees packets, relative to its interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// Packets that the interface received.
    Ingress,
    /// Packets that the interface is about to send.
    Egress,
}

impl Program {
    /// Every program, in the order of the codes.
    pub const ALL: [Self; 5] = [
        Self::FromPod,
        Self::FromHost,
        Self::FromUplink,
        Self::ToPod,
        Self::FromFarEnd,
    ];

    /// The name in the object, of the pin below `programs/`, and in commands and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::FromHost => "from_host",
            Self::FromUplink => "from_uplink",
            Self::ToPod => "to_pod",
            Self::FromFarEnd => "from_far_end",
        }
    }

    /// Where the program is attached, in words.
    pub const fn hook(self) -> &'static str {
        match self {
            Self::FromPod => "TC ingress of the host side of each pod's veth",
            Self::FromHost => "TC egress of ipip0",
            Self::FromUplink => "TC ingress of each uplink",
            Self::ToPod => "TC egress of the host side of each pod's veth",
            Self::FromFarEnd => "TC ingress of ipip0-far",
        }
    }

    /// Whether the program sees packets that its interface received or packets that it is about to send.
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromPod | Self::FromUplink | Self::FromFarEnd => Direction::Ingress,
            Self::FromHost | Self::ToPod => Direction::Egress,
        }
    }

    /// The program with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|program| program.name() == name)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl TryFrom<u8> for Program {
    type Error = UnknownCode;

    fn try_from(code: u8) -> Result<Self, UnknownCode> {
        let program = Self::ALL.get(usize::from(code)).copied();
        program.ok_or(UnknownCode(u32::from(code)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_found_by_its_code_and_by_its_name() {
        for program in Program::ALL {
            assert_eq!(Program::try_from(program as u8), Ok(program));
            assert_eq!(Program::by_name(program.name()), Some(program));
        }
        assert_eq!(Program::try_from(5), Err(UnknownCode(5)));
        assert_eq!(Program::by_name("from_tunnel"), None);
    }

    #[test]
    fn programs_keep_their_codes() {
        let codes = Program::ALL.map(|program| (program as u8, program.name()));
        let given_out = [
            (0, "from_pod"),
            (1, "from_host"),
            (2, "from_uplink"),
            (3, "to_pod"),
            (4, "from_far_end"),
        ];
        assert_eq!(codes, given_out);
    }
}
