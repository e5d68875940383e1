//! Reads the filter chains at the hook `forward`.

use super::{
    Nftables,
    accepts::{extension, verdict},
    conditions,
    expressions::{ACCEPT, DROP, Expression, NETWORK_HEADER, data, expressions},
    is_absent, rule_of,
};
use crate::{
    FilterAction, FilterField, FilterRule, FilterTest, ForwardFilter, Result, attributes::value,
};
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate,
        InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload,
        RuleMessage, SetElementAttribute, SetElementList, SetElementMessage, Verdict,
        VerdictAttribute,
    },
};
use std::collections::BTreeMap;

/// Chains beyond this number are not read, and count as unknown.
const MAX_CHAINS: usize = 128;
/// `NFTA_CT_KEY`.
const CT_KEY: u16 = 2;
/// `NFT_CT_STATE`.
const CT_STATE: u32 = 0;
/// `NFT_CT_STATUS`.
const CT_STATUS: u32 = 2;
/// `NFT_LOOKUP_F_INV`.
const INVERTED: u32 = 1;

/// The families whose chains see IPv4 packets, and how `nft` calls them.
const FAMILIES: [(NetfilterProtoFamily, &str); 2] = [
    (NetfilterProtoFamily::IPv4, "ip"),
    (NetfilterProtoFamily::Inet, "inet"),
];

/// Value and verdict of an element of a set.
type Element = (Vec<u8>, Option<FilterAction>);

/// A table.
struct Table {
    family: NetfilterProtoFamily,
    name: String,
}

impl Nftables {
    /// The chains of every program that filter forwarded IPv4 packets.
    pub fn forward_filters(&mut self) -> Result<Vec<ForwardFilter>> {
        let mut filters = Vec::new();
        for (family, family_name) in FAMILIES {
            let request = NfTablesMessage::GetChain(ChainMessage {
                attributes: Vec::new(),
            });
            let chains = match self.0.dump("list nftables chains", of(family, request)) {
                Err(error) if is_absent(&error) => continue,
                chains => chains?,
            };
            for answer in chains {
                let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) =
                    answer.inner
                else {
                    continue;
                };
                let Some((table, chain, drops)) = filters_forwarded(&chain) else {
                    continue;
                };
                let table = Table {
                    family,
                    name: table,
                };
                let rules = self.filter_rules(&table, &chain)?;
                filters.push(ForwardFilter {
                    name: format!("{family_name} {} {chain}", table.name),
                    drops,
                    called: self.called(&table, &rules)?,
                    rules,
                });
            }
        }
        Ok(filters)
    }

    /// The rules of each chain that these rules call, also through others.
    fn called(
        &mut self,
        table: &Table,
        rules: &[FilterRule],
    ) -> Result<BTreeMap<String, Vec<FilterRule>>> {
        let mut called = BTreeMap::new();
        let mut open: Vec<String> = targets(rules).collect();
        while let Some(chain) = open.pop() {
            if called.contains_key(&chain) || called.len() >= MAX_CHAINS {
                continue;
            }
            let rules = self.filter_rules(table, &chain)?;
            open.extend(targets(&rules));
            called.insert(chain, rules);
        }
        Ok(called)
    }

    fn filter_rules(&mut self, table: &Table, chain: &str) -> Result<Vec<FilterRule>> {
        let of_chain = rule_of(&table.name, chain);
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: of_chain.to_vec(),
        });
        let request = of(table.family, request);
        let mut rules = Vec::new();
        for answer in self.0.dump("list nftables rules", request)? {
            if let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = answer.inner
                && of_chain.iter().all(|it| rule.attributes.contains(it))
            {
                rules.extend(self.model(table, &rule)?);
            }
        }
        Ok(rules)
    }

    /// A rule in the model; one for each element of a verdict map.
    fn model(&mut self, table: &Table, rule: &RuleMessage) -> Result<Vec<FilterRule>> {
        let mut reader = Reader::default();
        for expression in expressions(rule) {
            let Some(Expressions::Lookup(lookup)) = data(expression) else {
                reader.read(expression);
                continue;
            };
            let field = reader.take_field();
            let is_map = lookup
                .iter()
                .any(|it| matches!(it, Lookup::DestinationRegister(_)));
            let elements = match field {
                FilterField::Other | FilterField::Unknown => None,
                _ => self.elements(table, lookup)?,
            };
            let Some(elements) = elements else {
                let of_addresses = field != FilterField::Other;
                let unknown = if of_addresses {
                    FilterField::Unknown
                } else {
                    field
                };
                reader.test(unknown, Vec::new(), Vec::new(), false);
                if is_map {
                    reader.action = FilterAction::Unknown;
                }
                continue;
            };
            if is_map {
                let rules = elements.into_iter().map(|(value, action)| {
                    let mut reader = reader.clone();
                    reader.test(field, Vec::new(), vec![value], false);
                    reader.action = action.unwrap_or(FilterAction::Unknown);
                    reader.rule()
                });
                return Ok(rules.collect());
            }
            let inverted = lookup
                .iter()
                .any(|it| matches!(it, Lookup::Flags(flags) if flags & INVERTED != 0));
            let values = elements.into_iter().map(|(value, _)| value).collect();
            reader.test(field, Vec::new(), values, inverted);
        }
        Ok(vec![reader.rule()])
    }

    /// The elements of the set of a lookup, and what a verdict map does with each. `None` if they are intervals.
    fn elements(&mut self, table: &Table, lookup: &[Lookup]) -> Result<Option<Vec<Element>>> {
        let Some(set) = lookup.iter().find_map(|it| match it {
            Lookup::Set(name) => Some(name.clone()),
            _ => None,
        }) else {
            return Ok(None);
        };
        let request = NfTablesMessage::GetSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.name.clone()),
                SetElementList::Set(set),
            ],
        });
        let request = of(table.family, request);
        let mut elements = Vec::new();
        for answer in self.0.dump("list elements of an nftables set", request)? {
            let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(list)) =
                answer.inner
            else {
                continue;
            };
            for attribute in list.attributes {
                let SetElementList::Elements(list) = attribute else {
                    continue;
                };
                for element in list {
                    let ListAttribute::Element(element) = element else {
                        continue;
                    };
                    let Some(element) = single(&element) else {
                        return Ok(None);
                    };
                    elements.push(element);
                }
            }
        }
        Ok(Some(elements))
    }
}

/// An element that is a single value, and its verdict.
fn single(element: &[SetElementAttribute]) -> Option<Element> {
    let (mut key, mut action) = (None, None);
    for attribute in element {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(value)) => key = Some(value.clone()),
            SetElementAttribute::Data(DataAttribute::Verdict(verdict)) => {
                action = Some(action_of(verdict));
            }
            SetElementAttribute::Flags(_) | SetElementAttribute::KeyEnd(_) => return None,
            _ => {}
        }
    }
    Some((key?, action))
}

/// Table and name of a chain if it filters forwarded packets, and whether its policy is to drop.
fn filters_forwarded(chain: &ChainMessage) -> Option<(String, String, bool)> {
    let (mut table, mut name, mut is_forward, mut drops) = (None, None, false, false);
    for attribute in &chain.attributes {
        match attribute {
            ChainAttribute::Table(it) => table = Some(it.clone()),
            ChainAttribute::Name(it) => name = Some(it.clone()),
            ChainAttribute::Hook(hook) => {
                is_forward = hook.contains(&Hook::Number(InetHookNumber::Forward.into()));
            }
            ChainAttribute::Policy(policy) => drops = Verdict::from(*policy) == DROP,
            _ => {}
        }
    }
    is_forward.then_some((table?, name?, drops))
}

fn targets(rules: &[FilterRule]) -> impl Iterator<Item = String> {
    rules.iter().filter_map(|it| match &it.action {
        FilterAction::Jump(chain) | FilterAction::Goto(chain) => Some(chain.clone()),
        _ => None,
    })
}

fn of(family: NetfilterProtoFamily, inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// Follows the expressions of a rule: a load into a register, perhaps a mask, then a comparison.
#[derive(Clone)]
struct Reader {
    /// The field that was loaded last, and its mask.
    field: Option<FilterField>,
    mask: Vec<u8>,
    tests: Vec<FilterTest>,
    action: FilterAction,
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
    fn rule(self) -> FilterRule {
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

    fn take_field(&mut self) -> FilterField {
        self.field.take().unwrap_or(FilterField::Other)
    }

    fn test(&mut self, field: FilterField, mask: Vec<u8>, values: Vec<Vec<u8>>, negated: bool) {
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

    fn read(&mut self, expression: &Expression) {
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
        (NETWORK_HEADER, conditions::SOURCE, ..=4) => FilterField::Source,
        (NETWORK_HEADER, conditions::DESTINATION, ..=4) => FilterField::Destination,
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

fn action_of(attributes: &[VerdictAttribute]) -> FilterAction {
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
