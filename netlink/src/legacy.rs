//! Reads the chain `FORWARD` of iptables-legacy, whose rules are no objects of netlink.

use crate::{
    Error, FilterAction, FilterField, FilterRule, FilterTest, ForwardFilter, Result,
    nftables::xtables_state,
};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

/// The tables of iptables-legacy in this network namespace. Asking the kernel for a table would create it.
const TABLES: &str = "/proc/thread-self/net/ip_tables_names";
const TABLE: &str = "filter";
/// `IPT_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME_BYTES: usize = 32;
/// Size of `struct ipt_getinfo`.
const INFO_BYTES: usize = 84;
/// Offset of `hook_entry[NF_INET_FORWARD]` in it.
const FORWARD_ENTRY: usize = NAME_BYTES + 4 + 2 * 4;
/// Offset of `size` in it.
const SIZE: usize = 80;
/// Size of `struct ipt_get_entries`; the entries follow.
const HEADER_BYTES: usize = 40;
/// Size of `struct ipt_entry`; the matches follow.
const ENTRY_BYTES: usize = 112;
/// Size of `struct xt_entry_match` and of `struct xt_entry_target`; their data follow.
const EXTENSION_BYTES: usize = 32;

/// The chain `FORWARD` of iptables-legacy; `None` if the host has no such table.
pub fn legacy_forward_filter() -> Result<Option<ForwardFilter>> {
    let attempt = "read the rules of iptables-legacy";
    let at = |source| Error::Socket {
        attempt: attempt.into(),
        source,
    };
    match fs::read_to_string(TABLES) {
        Ok(names) if names.lines().any(|it| it == TABLE) => {}
        Ok(_) => return Ok(None),
        // It exists only with the module.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    }
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|errno| at(errno.into()))?;
    let mut info = vec![0; INFO_BYTES];
    info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
    option(&socket, GET_INFO, &mut info).map_err(at)?;
    let number =
        |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let mut entries = vec![0; HEADER_BYTES + number(SIZE) as usize];
    entries[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
    entries[NAME_BYTES..][..4].copy_from_slice(&number(SIZE).to_ne_bytes());
    option(&socket, GET_ENTRIES, &mut entries).map_err(at)?;
    let table = Entries(&entries[HEADER_BYTES..]);
    Ok(table.filter(number(FORWARD_ENTRY) as usize))
}

fn option(socket: &OwnedFd, name: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: `value` is valid for reads and writes of `len` bytes, and the kernel writes no more than that.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The rules of a table, one behind the other. A jump names the offset of the first rule of a chain.
pub(crate) struct Entries<'a>(pub(crate) &'a [u8]);

impl Entries<'_> {
    pub(crate) fn filter(&self, start: usize) -> Option<ForwardFilter> {
        let rules = self.chain(start)?;
        let mut called = BTreeMap::new();
        let mut open: Vec<String> = targets(&rules).collect();
        while let Some(chain) = open.pop() {
            if called.contains_key(&chain) {
                continue;
            }
            let rules = self.chain(chain.parse().ok()?)?;
            open.extend(targets(&rules));
            called.insert(chain, rules);
        }
        Some(ForwardFilter {
            name: "iptables-legacy FORWARD".into(),
            // The policy is the last rule.
            drops: false,
            rules,
            called,
        })
    }

    /// The rules from `offset` to one that always ends the chain: the policy, or the final return.
    fn chain(&self, mut offset: usize) -> Option<Vec<FilterRule>> {
        let mut rules = Vec::new();
        loop {
            let entry = self.0.get(offset..)?;
            let next = usize::from(u16_at(entry, 90)?);
            let rule = rule(entry.get(..next)?)?;
            offset += next;
            let ends = rule.tests.is_empty()
                && matches!(
                    rule.action,
                    FilterAction::Accept | FilterAction::Drop | FilterAction::Return
                );
            rules.push(rule);
            if ends {
                return Some(rules);
            }
        }
    }
}

fn targets(rules: &[FilterRule]) -> impl Iterator<Item = String> {
    rules.iter().filter_map(|it| match &it.action {
        FilterAction::Jump(chain) | FilterAction::Goto(chain) => Some(chain.clone()),
        _ => None,
    })
}

/// Reads a `struct ipt_entry` with its matches and its target.
fn rule(entry: &[u8]) -> Option<FilterRule> {
    let inverted = *entry.get(83)?;
    let mut tests = Vec::new();
    // Offsets of value, mask and length, and the bit of `invflags`.
    for (field, value, mask, len, bit) in [
        (FilterField::Source, 0, 8, 4, 0x08),
        (FilterField::Destination, 4, 12, 4, 0x10),
        (FilterField::InName, 16, 48, 16, 0x01),
        (FilterField::OutName, 32, 64, 16, 0x02),
    ] {
        let mask = entry.get(mask..mask + len)?;
        if mask.iter().any(|it| *it != 0) {
            let value = entry.get(value..value + len)?;
            tests.push(FilterTest {
                field,
                mask: mask.into(),
                values: vec![
                    value
                        .iter()
                        .zip(mask)
                        .map(|(value, mask)| value & mask)
                        .collect(),
                ],
                negated: inverted & bit != 0,
            });
        }
    }
    let (protocol, flags) = (u16_at(entry, 80)?, *entry.get(82)?);
    // `IPT_F_FRAG` is 1.
    if protocol != 0 || flags & 1 != 0 {
        tests.push(condition(FilterField::Other));
    }
    let target = usize::from(u16_at(entry, 88)?);
    let mut offset = ENTRY_BYTES;
    while offset < target {
        let extension = entry.get(offset..target)?;
        let size = usize::from(u16_at(extension, 0)?);
        tests.extend(test(extension.get(..size)?));
        offset += size.max(EXTENSION_BYTES);
    }
    // `IPT_F_GOTO` is 2.
    let action = action(entry.get(target..)?, flags & 2 != 0)?;
    Some(FilterRule { tests, action })
}

/// The condition of a match.
fn test(extension: &[u8]) -> Option<FilterTest> {
    match name(extension) {
        "comment" => None,
        "conntrack" => Some(
            match extension.get(EXTENSION_BYTES..).and_then(xtables_state) {
                Some((mask, inverted)) => FilterTest {
                    mask: mask.to_ne_bytes().into(),
                    values: vec![vec![0; 2]],
                    negated: !inverted,
                    ..condition(FilterField::XtablesState)
                },
                None => condition(FilterField::Other),
            },
        ),
        "set" | "iprange" | "physdev" | "bpf" | "u32" | "policy" => {
            Some(condition(FilterField::Unknown))
        }
        _ => Some(condition(FilterField::Other)),
    }
}

fn condition(field: FilterField) -> FilterTest {
    FilterTest {
        field,
        mask: Vec::new(),
        values: Vec::new(),
        negated: false,
    }
}

fn action(target: &[u8], goes: bool) -> Option<FilterAction> {
    Some(match name(target) {
        // The standard target: an offset, or a verdict `-1 - NF_…`.
        "" => {
            let verdict = target.get(EXTENSION_BYTES..EXTENSION_BYTES + 4)?;
            match i32::from_ne_bytes(verdict.try_into().ok()?) {
                -1 => FilterAction::Drop,
                -2 => FilterAction::Accept,
                // `XT_RETURN`.
                -5 => FilterAction::Return,
                offset @ 0.. if goes => FilterAction::Goto(offset.to_string()),
                offset @ 0.. => FilterAction::Jump(offset.to_string()),
                _ => FilterAction::Unknown,
            }
        }
        "REJECT" | "DROP" => FilterAction::Drop,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "TRACE" => FilterAction::Continue,
        // The name of a chain stands before its first rule.
        "ERROR" => FilterAction::Continue,
        _ => FilterAction::Unknown,
    })
}

/// Name of a match or target.
fn name(extension: &[u8]) -> &str {
    let name = extension.get(2..31).unwrap_or_default();
    let end = name.iter().position(|it| *it == 0).unwrap_or(name.len());
    std::str::from_utf8(&name[..end]).unwrap_or("?")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
