//! Expressions of rules: what several kinds of rules are built of, and their comparison with those of the kernel.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Meta,
    MetaKey, Operator, Payload, Register, RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
};
use nix::libc;

/// `NFT_PAYLOAD_NETWORK_HEADER`.
pub(super) const NETWORK_HEADER: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
pub(super) const TRANSPORT_HEADER: u32 = 2;
pub(super) const ACCEPT: Verdict = Verdict::Other(libc::NF_ACCEPT as u32);
pub(super) const DROP: Verdict = Verdict::Other(libc::NF_DROP as u32);

pub(super) type Expression = ListAttribute<ExpressionAttribute>;

/// The expressions of a rule.
pub(super) fn expressions(rule: &RuleMessage) -> &[Expression] {
    let expressions = rule.attributes.iter().find_map(|it| match it {
        RuleAttribute::Expressions(expressions) => Some(&expressions[..]),
        _ => None,
    });
    expressions.unwrap_or_default()
}

/// An attribute with a number.
pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().into())
}

/// Loads a constant.
pub(super) fn load(register: Register, value: Vec<u8>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(register),
        Immediate::Data(DataAttribute::Value(value)),
    ])
}

/// Loads a property of the packet.
pub(super) fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![
        Meta::Key(key),
        Meta::DestinationRegister(Register::Reg1),
    ])
}

/// Loads `bytes` at `offset` of the network header or the transport header.
pub(super) fn header(base: u32, offset: u32, bytes: usize) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(bytes as u32),
    ])
}

/// Clears the bits that are not in `mask`.
pub(super) fn mask(mask: [u8; 4]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Mask(DataAttribute::Value(mask.into())),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
    ])
}

/// Compares what was loaded.
pub(super) fn compare(operator: Operator, with: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(with)),
    ])
}

/// The counters that `nft list` and `iptables -v` show.
pub(super) fn counter() -> Expressions {
    Expressions::Other {
        expression_type: "counter".into(),
        attributes: Vec::new(),
    }
}

/// Ends the rule.
pub(super) fn immediate(verdict: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
}

/// Whether the kernel's expressions are the requested ones. Kernels report attributes in their own
/// order, and newer kernels report additional ones.
pub(super) fn are_same(held: &[Expression], wanted: &[Expression]) -> bool {
    held.len() == wanted.len() && held.iter().zip(wanted).all(|it| is_same(it.0, it.1))
}

fn is_same(held: &Expression, wanted: &Expression) -> bool {
    match (data(held), data(wanted)) {
        (Some(Expressions::Payload(held)), Some(Expressions::Payload(wanted))) => {
            has_all(held, wanted)
        }
        (Some(Expressions::Bitwise(held)), Some(Expressions::Bitwise(wanted))) => {
            has_all(held, wanted)
        }
        (Some(Expressions::Cmp(held)), Some(Expressions::Cmp(wanted))) => has_all(held, wanted),
        (Some(Expressions::Meta(held)), Some(Expressions::Meta(wanted))) => has_all(held, wanted),
        (Some(Expressions::Immediate(held)), Some(Expressions::Immediate(wanted))) => {
            has_all(held, wanted)
        }
        (
            Some(Expressions::Other {
                expression_type: held_type,
                attributes: held,
            }),
            Some(Expressions::Other {
                expression_type,
                attributes: wanted,
            }),
        ) => held_type == expression_type && has_all(held, wanted),
        (held, wanted) => held.is_some() && held == wanted,
    }
}

pub(super) fn data(expression: &Expression) -> Option<&Expressions> {
    let ListAttribute::Element(attributes) = expression else {
        return None;
    };
    attributes.iter().find_map(|it| match it {
        ExpressionAttribute::Data(data) => Some(data),
        _ => None,
    })
}

fn has_all<T: PartialEq>(held: &[T], wanted: &[T]) -> bool {
    wanted.iter().all(|it| held.contains(it))
}
