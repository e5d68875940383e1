//! Reads the filter chains at the hook `forward`.

use super::{
    Nftables,
    expressions::{DROP, data, expressions},
    is_absent, rule_of,
};
use crate::{FilterAction, FilterField, FilterRule, ForwardFilter, Result};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, DataAttribute, Expressions, Hook, InetHookNumber,
        ListAttribute, Lookup, NfTablesMessage, RuleMessage, SetElementAttribute, SetElementList,
        SetElementMessage, Verdict,
    },
};
use reader::{Reader, action_of};
use std::collections::BTreeMap;

mod reader;

pub(crate) use reader::xtables_state;

/// Chains beyond this number are not read, and count as unknown.
const MAX_CHAINS: usize = 128;
/// `NFT_LOOKUP_F_INV`.
const INVERTED: u32 = 1;

/// The families whose chains see IPv4 packets, and how `nft` calls them.
const FAMILIES: [(NetfilterProtoFamily, &str); 2] = [
    (NetfilterProtoFamily::IPv4, "ip"),
    (NetfilterProtoFamily::Inet, "inet"),
];

/// Value and verdict of an element of a set.
pub(super) type Element = (Vec<u8>, Option<FilterAction>);

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
                rules.extend(model(&rule, |lookup| self.elements(table, lookup))?);
            }
        }
        Ok(rules)
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
            match listed(list) {
                Some(listed) => elements.extend(listed),
                None => return Ok(None),
            }
        }
        Ok(Some(elements))
    }
}

/// A rule in the model; one for each element of a verdict map. `elements` reads the elements of the set of a lookup, and is
/// `None` if they are intervals.
pub(super) fn model(
    rule: &RuleMessage,
    mut elements: impl FnMut(&[Lookup]) -> Result<Option<Vec<Element>>>,
) -> Result<Vec<FilterRule>> {
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
            _ => elements(lookup)?,
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

/// The elements in one message of a dump; `None` if one is not a single value.
pub(super) fn listed(list: SetElementMessage) -> Option<Vec<Element>> {
    let lists = list.attributes.into_iter().filter_map(|it| match it {
        SetElementList::Elements(list) => Some(list),
        _ => None,
    });
    let elements = lists.flatten().filter_map(|it| match it {
        ListAttribute::Element(element) => Some(element),
        _ => None,
    });
    elements.map(|it| single(&it)).collect()
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
pub(super) fn filters_forwarded(chain: &ChainMessage) -> Option<(String, String, bool)> {
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
