//! Accept rules in the chain `FORWARD` of iptables-nft, in the form that `iptables` reads.

use super::{
    Message, Nftables, append_rule, chain_named,
    conditions::{Condition, NameForm, conditions},
    expressions::{
        ACCEPT, DROP, Expression, are_same, counter, data, expressions, immediate, number,
    },
    message, new, rule_of,
};
use crate::{
    Result,
    attributes::{as_text, value, zero_terminated},
};
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Nla};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Expressions, Hook, Immediate, InetHookNumber,
    NfTablesMessage, RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
};

/// The table of iptables-nft, of the family `ip`.
pub const IPTABLES_TABLE: &str = "filter";
/// Its chain for forwarded packets.
pub const IPTABLES_FORWARD: &str = "FORWARD";

/// Chains that call each other further than this are taken for chains that return.
const MAX_DEPTH: u32 = 4;
/// `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`.
const EXTENSION_NAME: u16 = 1;

/// A chain of iptables that `FORWARD` calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AcceptChain<'a> {
    /// Its name.
    pub name: &'a str,
    /// The conditions of each rule, all of which an accepted packet meets.
    pub rules: Vec<Vec<Condition<'a>>>,
}

impl Nftables {
    /// Creates the chain and the jump to it, or repairs them. The jump is appended to `FORWARD`; if a rule drops every
    /// packet, the jump stands before it. Without a chain `FORWARD` of iptables-nft, nothing is done. Returns whether
    /// anything was changed.
    pub fn ensure_accepts(&mut self, wanted: &AcceptChain) -> Result<bool> {
        if !self.has_iptables_forward()? {
            return Ok(false);
        }
        let forward = self.rules_of(IPTABLES_TABLE, IPTABLES_FORWARD)?;
        let jumps = jumps_to(&forward, wanted.name);
        let mut end = None;
        for (index, rule) in forward.iter().enumerate() {
            if self.drops_everything(rule, MAX_DEPTH)? {
                end = Some((index, handle(rule)));
                break;
            }
        }
        let is_reached = |jump: usize| end.is_none_or(|(end, _)| jump < end);
        let has_jump = matches!(jumps[..], [(jump, _)] if is_reached(jump));
        let held = self.rules_of(IPTABLES_TABLE, wanted.name)?;
        if has_jump && holds(&held, wanted) {
            return Ok(false);
        }
        let mut messages = vec![
            new(NfTablesMessage::NewChain(chain_of(wanted.name))),
            delete_rules(wanted.name, None),
        ];
        let rules = wanted.rules.iter();
        messages.extend(rules.map(|it| append_rule(IPTABLES_TABLE, wanted.name, accept(it))));
        messages.extend(
            jumps
                .iter()
                .map(|(_, handle)| delete_rules(IPTABLES_FORWARD, *handle)),
        );
        messages.push(new_jump(wanted.name, end.and_then(|(_, handle)| handle)));
        let attempt = || format!("write the chain {} of iptables", wanted.name);
        self.transact(attempt, messages)?;
        Ok(true)
    }

    /// Deletes the chain and the jumps to it. If there is no such chain, this is no error.
    pub fn delete_accepts(&mut self, chain: &AcceptChain) -> Result<()> {
        if self.chain(IPTABLES_TABLE, chain.name)?.is_none() {
            return Ok(());
        }
        let forward = self.rules_of(IPTABLES_TABLE, IPTABLES_FORWARD)?;
        let jumps = jumps_to(&forward, chain.name);
        let mut messages: Vec<Message> = jumps
            .iter()
            .map(|(_, handle)| delete_rules(IPTABLES_FORWARD, *handle))
            .collect();
        messages.push(delete_rules(chain.name, None));
        let deleted = NfTablesMessage::DeleteChain(chain_of(chain.name));
        messages.push((message(deleted), NLM_F_ACK));
        self.transact(
            || format!("delete the chain {} of iptables", chain.name),
            messages,
        )
    }

    fn has_iptables_forward(&mut self) -> Result<bool> {
        let chain = self.chain(IPTABLES_TABLE, IPTABLES_FORWARD)?;
        let hook = Hook::Number(InetHookNumber::Forward.into());
        let has_hook =
            |it: &ChainAttribute| matches!(it, ChainAttribute::Hook(it) if it.contains(&hook));
        Ok(chain.is_some_and(|it| it.iter().any(has_hook)))
    }

    /// Whether a rule drops or rejects every packet, itself or through chains that it calls.
    fn drops_everything(&mut self, rule: &RuleMessage, depth: u32) -> Result<bool> {
        match unconditional(rule) {
            Some(Unconditional::Drop) => Ok(true),
            Some(Unconditional::Call(chain)) if depth > 0 => {
                for rule in self.rules_of(IPTABLES_TABLE, &chain)? {
                    if self.drops_everything(&rule, depth - 1)? {
                        return Ok(true);
                    }
                    if matches!(unconditional(&rule), Some(Unconditional::End)) {
                        return Ok(false);
                    }
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }
}

/// What a rule without conditions does with every packet.
pub(super) enum Unconditional {
    Drop,
    /// Accept, or return to the calling chain.
    End,
    /// Jump or go to a chain.
    Call(String),
}

/// `None` for a rule with a condition, and for one without a verdict.
pub(super) fn unconditional(rule: &RuleMessage) -> Option<Unconditional> {
    let mut found = None;
    for expression in expressions(rule) {
        match data(expression)? {
            Expressions::Other {
                expression_type,
                attributes,
            } => match (expression_type.as_str(), extension(attributes).as_deref()) {
                ("counter" | "log", _) | ("match", Some("comment")) | ("target", Some("LOG")) => {}
                ("reject", _) | ("target", Some("REJECT" | "DROP")) => {
                    found = Some(Unconditional::Drop);
                }
                _ => return None,
            },
            Expressions::Immediate(attributes) => {
                found = Some(match verdict_of(attributes)? {
                    (DROP, _) => Unconditional::Drop,
                    (ACCEPT | Verdict::Return, _) => Unconditional::End,
                    (Verdict::Jump | Verdict::Goto, Some(chain)) => {
                        Unconditional::Call(chain.to_owned())
                    }
                    _ => return None,
                });
            }
            _ => return None,
        }
    }
    found
}

/// Name of an extension of xtables.
pub(super) fn extension(attributes: &[DefaultNla]) -> Option<String> {
    let name = attributes.iter().find(|it| it.kind() == EXTENSION_NAME)?;
    Some(as_text(&value(name)))
}

fn verdict_of(immediate: &[Immediate]) -> Option<(Verdict, Option<&str>)> {
    immediate.iter().find_map(|it| match it {
        Immediate::Data(DataAttribute::Verdict(it)) => verdict(it),
        _ => None,
    })
}

/// A verdict, and the chain that it names.
pub(super) fn verdict(attributes: &[VerdictAttribute]) -> Option<(Verdict, Option<&str>)> {
    let code = attributes.iter().find_map(|it| match it {
        VerdictAttribute::Code(code) => Some(*code),
        _ => None,
    })?;
    let chain = attributes.iter().find_map(|it| match it {
        VerdictAttribute::Chain(chain) => Some(chain.as_str()),
        _ => None,
    });
    Some((code, chain))
}

/// Index and handle of each jump to `chain`.
fn jumps_to(rules: &[RuleMessage], chain: &str) -> Vec<(usize, Option<u64>)> {
    let jumps = |rule: &RuleMessage| {
        expressions(rule).iter().any(|it| {
            matches!(data(it), Some(Expressions::Immediate(it))
                if verdict_of(it).is_some_and(|(_, target)| target == Some(chain)))
        })
    };
    let found = rules.iter().enumerate().filter(|(_, rule)| jumps(rule));
    found.map(|(index, rule)| (index, handle(rule))).collect()
}

fn handle(rule: &RuleMessage) -> Option<u64> {
    rule.attributes.iter().find_map(|it| match it {
        RuleAttribute::Handle(handle) => Some(*handle),
        _ => None,
    })
}

fn holds(held: &[RuleMessage], wanted: &AcceptChain) -> bool {
    let same = |(held, wanted): (&RuleMessage, &Vec<Condition>)| {
        are_same(expressions(held), &accept(wanted))
    };
    held.len() == wanted.rules.len() && held.iter().zip(&wanted.rules).all(same)
}

fn accept(of: &[Condition]) -> Vec<Expression> {
    let end = [counter(), immediate(vec![VerdictAttribute::Code(ACCEPT)])];
    conditions(of, NameForm::Iptables)
        .chain(end)
        .map(Expression::from)
        .collect()
}

/// A jump before the rule with the handle `before`, or at the end.
fn new_jump(to: &str, before: Option<u64>) -> Message {
    let target = vec![
        VerdictAttribute::Code(Verdict::Jump),
        VerdictAttribute::Chain(to.into()),
    ];
    let jump = [counter(), immediate(target)].map(Expression::from);
    let mut attributes = rule_of(IPTABLES_TABLE, IPTABLES_FORWARD).to_vec();
    attributes.push(RuleAttribute::Expressions(jump.into()));
    let place = match before {
        Some(handle) => {
            attributes.push(RuleAttribute::Position(handle));
            0
        }
        None => NLM_F_APPEND,
    };
    let rule = NfTablesMessage::NewRule(RuleMessage { attributes });
    (message(rule), NLM_F_ACK | NLM_F_CREATE | place)
}

/// Deletes a rule, or all rules of the chain.
fn delete_rules(chain: &str, handle: Option<u64>) -> Message {
    let mut attributes = rule_of(IPTABLES_TABLE, chain).to_vec();
    attributes.extend(handle.map(RuleAttribute::Handle));
    let deleted = NfTablesMessage::DeleteRule(RuleMessage { attributes });
    (message(deleted), NLM_F_ACK)
}

fn chain_of(name: &str) -> ChainMessage {
    ChainMessage {
        attributes: chain_named(IPTABLES_TABLE, name).into(),
    }
}

/// The match `conntrack --ctstate DNAT` of xtables: the connection's destination was translated. nftables' own
/// expression for it is none that `iptables` reads.
pub(super) fn translated() -> Expressions {
    /// `NFTA_MATCH_REV`.
    const REVISION: u16 = 2;
    /// `NFTA_MATCH_INFO`.
    const INFO: u16 = 3;
    /// Size of `struct xt_conntrack_mtinfo3`, aligned to 8, and the offsets of its members.
    const BYTES: usize = 168;
    const MATCH_FLAGS: usize = 146;
    const STATE_MASK: usize = 150;
    /// `XT_CONNTRACK_STATE`.
    const STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_DNAT`.
    const DNAT: u16 = 1 << 7;
    let mut info = vec![0; BYTES];
    info[MATCH_FLAGS..][..2].copy_from_slice(&STATE.to_ne_bytes());
    info[STATE_MASK..][..2].copy_from_slice(&DNAT.to_ne_bytes());
    Expressions::Other {
        expression_type: "match".into(),
        attributes: vec![
            DefaultNla::new(EXTENSION_NAME, zero_terminated("conntrack")),
            number(REVISION, 3),
            DefaultNla::new(INFO, info),
        ],
    }
}
