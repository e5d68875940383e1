//! What a firewall does with forwarded packets: a model of its rules that holds what an agent can judge.

/// A chain at the hook `forward`, with the chains that it calls.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ForwardFilter {
    /// How the operator finds the chain, e.g. `inet filter forward`.
    pub name: String,
    /// Whether its policy is to drop.
    pub drops: bool,
    /// The rules of the chain itself.
    pub rules: Vec<FilterRule>,
    /// The rules of each chain that is called, by name.
    pub called: std::collections::BTreeMap<String, Vec<FilterRule>>,
}

/// A rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilterRule {
    /// The conditions, all of which a packet must meet.
    pub tests: Vec<FilterTest>,
    /// What happens to such a packet.
    pub action: FilterAction,
}

/// A condition on a packet: its field, masked, is one of the values.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilterTest {
    /// The field.
    pub field: FilterField,
    /// The mask; empty if there is none.
    pub mask: Vec<u8>,
    /// The values. Shorter ones are compared with the beginning of the field.
    pub values: Vec<Vec<u8>>,
    /// Whether the condition is met if the field is none of the values.
    pub negated: bool,
}

/// A field of a packet or of its connection, and its form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FilterField {
    /// Name of the interface through which it arrived: 16 bytes, with zeros at the end.
    InName,
    /// Name of the interface through which it leaves.
    OutName,
    /// Index of the interface through which it arrived: in the machine's byte order.
    InIndex,
    /// Index of the interface through which it leaves.
    OutIndex,
    /// Source address.
    Source,
    /// Destination address.
    Destination,
    /// Bits of the connection's state: [`FilterField::NEW`] and others, in the machine's byte order.
    State,
    /// Bits of the connection's status: [`FilterField::TRANSLATED`] and others, in the machine's byte order.
    Status,
    /// State of the connection as xtables has it: [`FilterField::NEW`], [`FilterField::XTABLES_TRANSLATED`] and
    /// others, in two bytes of the machine's byte order.
    XtablesState,
    /// Protocol family: one byte.
    Family,
    /// EtherType: two bytes.
    EtherType,
    /// Any other, which distinguishes only between packets of the same interfaces and addresses (ports, marks).
    Other,
    /// One that this model cannot express, and that may distinguish interfaces or addresses.
    Unknown,
}

impl FilterField {
    /// The state of a connection that begins.
    pub const NEW: u8 = 8;
    /// The status of a connection whose destination was translated (DNAT).
    pub const TRANSLATED: u8 = 32;
    /// The same in [`FilterField::XtablesState`].
    pub const XTABLES_TRANSLATED: u8 = 128;
}

/// What a rule does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FilterAction {
    /// Accept.
    Accept,
    /// Drop or reject.
    Drop,
    /// Continue in another chain, and then behind this rule.
    Jump(String),
    /// Continue in another chain instead of this one.
    Goto(String),
    /// Return to the calling chain.
    Return,
    /// Continue behind this rule (counters, logs, marks).
    Continue,
    /// One that this model cannot express, and that may accept.
    Unknown,
}
