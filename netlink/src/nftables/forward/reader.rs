//! Reads a rule of any program into the model of a filter.

use super::super::{
    accepts::{extension, verdict},
    conditions::{DESTINATION, SOURCE},
    expressions::{ACCEPT, DROP, Expression, NETWORK_HEADER, data},
};
use crate::{FilterAction, FilterField, FilterRule, FilterTest, attributes::value};
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Meta, MetaKey, Operator, Payload, Verdict,
    VerdictAttribute,
};

/// `NFTA_CT_KEY`.
const CT_KEY: u16 = 2;
/// `NFT_CT_STATE`.
const CT_STATE: u32 = 0;
/// `NFT_CT_STATUS`.
const CT_STATUS: u32 = 2;

/// Follows the expressions of a rule: a load into a register, perhaps a mask, then a comparison.
#[derive(Clone)]
pub(super) struct Reader {
    /// The field that was loaded last, and its mask.
    field: Option<FilterField>,
    mask: Vec<u8>,
    tests: Vec<FilterTest>,
    pub action: FilterAction,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            field: None,
            mask: Vec::new(),
            tests: Vec::new(),
            action: FilterAction::Continue,
        }
    }
}

impl Reader {
    /// The rule as far as it was read.
    pub fn rule(self) -> FilterRule {
        FilterRule {
            tests: self.tests,
            action: self.action,
        }
    }

    /// Notes a load. A second one before a comparison concatenates.
    fn load(&mut self, field: FilterField) {
        self.field = Some(if self.field.is_some() {
            FilterField::Unknown
        } else {
            field
        });
        self.mask.clear();
    }

    /// The field that the next comparison is about.
    pub fn take_field(&mut self) -> FilterField {
        self.field.take().unwrap_or(FilterField::Other)
    }

    /// Adds a condition.
    pub fn test(&mut self, field: FilterField, mask: Vec<u8>, values: Vec<Vec<u8>>, negated: bool) {
        self.tests.push(FilterTest {
            field,
            mask,
            values,
            negated,
        });
    }

    /// A condition on other properties of the packet.
    fn test_other(&mut self) {
        self.test(FilterField::Other, Vec::new(), Vec::new(), false);
    }

    /// Reads the next expression.
    pub fn read(&mut self, expression: &Expression) {
        match data(expression) {
            Some(Expressions::Payload(attributes)) => self.load(payload_field(attributes)),
            Some(Expressions::Meta(attributes)) => {
                let loads = |it: &Meta| matches!(it, Meta::DestinationRegister(_));
                if attributes.iter().any(loads) {
                    self.load(meta_field(attributes));
                }
            }
            Some(Expressions::Bitwise(attributes)) => self.read_mask(attributes),
            Some(Expressions::Cmp(attributes)) => self.compare(attributes),
            Some(Expressions::Immediate(attributes)) => {
                let verdict = attributes.iter().find_map(|it| match it {
                    Immediate::Data(DataAttribute::Verdict(verdict)) => Some(verdict),
                    _ => None,
                });
                if let Some(verdict) = verdict {
                    self.action = action_of(verdict);
                }
            }
            Some(Expressions::Other {
                expression_type,
                attributes,
            }) => self.read_other(expression_type, attributes),
            _ => self.test(FilterField::Unknown, Vec::new(), Vec::new(), false),
        }
    }

    fn read_mask(&mut self, attributes: &[Bitwise]) {
        let is_plain = attributes.iter().all(|it| match it {
            Bitwise::Xor(DataAttribute::Value(xor)) => xor.iter().all(|byte| *byte == 0),
            Bitwise::Op(operation) => *operation == 0,
            _ => true,
        });
        let mask = attributes.iter().find_map(|it| match it {
            Bitwise::Mask(DataAttribute::Value(mask)) => Some(mask.clone()),
            _ => None,
        });
        match mask {
            Some(mask) if is_plain => self.mask = mask,
            _ => self.field = self.field.map(|_| FilterField::Unknown),
        }
    }

    fn compare(&mut self, attributes: &[Cmp]) {
        let (mut operator, mut value) = (None, None);
        for attribute in attributes {
            match attribute {
                Cmp::Op(it) => operator = Some(*it),
                Cmp::Data(DataAttribute::Value(it)) => value = Some(it.clone()),
                _ => {}
            }
        }
        let mask = std::mem::take(&mut self.mask);
        let field = self.take_field();
        match (operator, value) {
            (Some(Operator::Equal), Some(value)) => self.test(field, mask, vec![value], false),
            (Some(Operator::NotEqual), Some(value)) => self.test(field, mask, vec![value], true),
            // A range of ports, or of addresses.
            _ if field == FilterField::Other => self.test_other(),
            _ => self.test(FilterField::Unknown, Vec::new(), Vec::new(), false),
        }
    }

    fn read_other(&mut self, kind: &str, attributes: &[DefaultNla]) {
        match (kind, extension(attributes).as_deref()) {
            ("counter" | "log" | "notrack" | "dup" | "flow_offload" | "objref", _)
            | ("match", Some("comment"))
            | ("target", Some("LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "TRACE")) => {}
            ("reject", _) | ("target", Some("REJECT" | "DROP")) => self.action = FilterAction::Drop,
            ("match", Some("conntrack")) => self.read_conntrack(attributes),
            ("ct", _) => {
                if let Some(field) = ct_field(attributes) {
                    self.load(field);
                }
            }
            ("target" | "queue" | "synproxy", _) => self.action = FilterAction::Unknown,
            ("match", Some("set" | "iprange" | "physdev" | "bpf" | "u32" | "policy")) => {
                self.test(FilterField::Unknown, Vec::new(), Vec::new(), false);
            }
            ("match" | "limit" | "quota" | "connlimit" | "last", _) => self.test_other(),
            ("range", _) => {
                let field = self.take_field();
                let unknown = field != FilterField::Other;
                let field = if unknown { FilterField::Unknown } else { field };
                self.test(field, Vec::new(), Vec::new(), false);
            }
            ("fib" | "rt", _) => self.load(FilterField::Unknown),
            _ => self.load(FilterField::Other),
        }
    }

    /// The match `conntrack` of xtables, if it is for states only.
    fn read_conntrack(&mut self, attributes: &[DefaultNla]) {
        /// `NFTA_MATCH_INFO`.
        const INFO: u16 = 3;
        let state = attributes
            .iter()
            .find(|it| it.kind() == INFO)
            .and_then(|it| xtables_state(&value(it)));
        match state {
            Some((mask, inverted)) => {
                // The bits are none of the zero values, or they are.
                self.test(
                    FilterField::XtablesState,
                    mask.to_ne_bytes().into(),
                    vec![vec![0; 2]],
                    !inverted,
                );
            }
            None => self.test_other(),
        }
    }
}

/// The mask of states of `struct xt_conntrack_mtinfo3`, and whether it is inverted. `None` if it has other conditions.
pub(crate) fn xtables_state(info: &[u8]) -> Option<(u16, bool)> {
    let number = |at: usize| {
        let bytes = info.get(at..at + 2)?;
        Some(u16::from_ne_bytes(bytes.try_into().ok()?))
    };
    // `match_flags`, `invert_flags` and `state_mask`; `XT_CONNTRACK_STATE` is 1.
    let (matched, inverted, states) = (number(146)?, number(148)?, number(150)?);
    (matched == 1).then_some((states, inverted & 1 != 0))
}

fn payload_field(attributes: &[Payload]) -> FilterField {
    let (mut base, mut offset, mut len) = (0, 0, 0);
    for attribute in attributes {
        match attribute {
            Payload::Base(it) => base = *it,
            Payload::Offset(it) => offset = *it,
            Payload::Len(it) => len = *it,
            _ => {}
        }
    }
    match (base, offset, len) {
        (NETWORK_HEADER, SOURCE, ..=4) => FilterField::Source,
        (NETWORK_HEADER, DESTINATION, ..=4) => FilterField::Destination,
        _ => FilterField::Other,
    }
}

fn meta_field(attributes: &[Meta]) -> FilterField {
    let key = attributes.iter().find_map(|it| match it {
        Meta::Key(key) => Some(*key),
        _ => None,
    });
    match key {
        Some(MetaKey::Iifname) => FilterField::InName,
        Some(MetaKey::Oifname) => FilterField::OutName,
        Some(MetaKey::Iif) => FilterField::InIndex,
        Some(MetaKey::Oif) => FilterField::OutIndex,
        Some(MetaKey::Nfproto) => FilterField::Family,
        Some(MetaKey::EtherTypeProtocol) => FilterField::EtherType,
        Some(
            MetaKey::Iftype
            | MetaKey::Oiftype
            | MetaKey::Iifgroup
            | MetaKey::Oifgroup
            | MetaKey::Iifkind
            | MetaKey::Oifkind
            | MetaKey::Sdif
            | MetaKey::Sdifname,
        ) => FilterField::Unknown,
        _ => FilterField::Other,
    }
}

/// The field that a `ct` expression loads; `None` if it sets one.
fn ct_field(attributes: &[DefaultNla]) -> Option<FilterField> {
    /// `NFTA_CT_SREG`.
    const SOURCE_REGISTER: u16 = 4;
    if attributes.iter().any(|it| it.kind() == SOURCE_REGISTER) {
        return None;
    }
    let key = attributes.iter().find(|it| it.kind() == CT_KEY)?;
    let key = value(key).try_into().ok().map(u32::from_be_bytes);
    Some(match key {
        Some(CT_STATE) => FilterField::State,
        Some(CT_STATUS) => FilterField::Status,
        _ => FilterField::Other,
    })
}

/// What a verdict does.
pub(super) fn action_of(attributes: &[VerdictAttribute]) -> FilterAction {
    match verdict(attributes) {
        Some((ACCEPT, _)) => FilterAction::Accept,
        Some((DROP, _)) => FilterAction::Drop,
        Some((Verdict::Return, _)) => FilterAction::Return,
        Some((Verdict::Continue | Verdict::Break, _)) => FilterAction::Continue,
        Some((Verdict::Jump, Some(chain))) => FilterAction::Jump(chain.into()),
        Some((Verdict::Goto, Some(chain))) => FilterAction::Goto(chain.into()),
        _ => FilterAction::Unknown,
    }
}
