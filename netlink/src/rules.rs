//! Policy routing rules (`ip rule`).

use crate::{Netlink, Result};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAttribute, RuleMessage},
};

/// An IPv4 rule that selects a routing table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// The lowest number is evaluated first.
    pub priority: u32,
    /// The table that it looks up.
    pub table: u32,
    /// The rule as the kernel listed it; a deletion must name exactly these attributes.
    pub(crate) message: RuleMessage,
}

impl Netlink {
    /// Lists the IPv4 rules.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        let mut request = RuleMessage::default();
        request.header.family = AddressFamily::Inet;
        let table = self.dump("list rules", RouteNetlinkMessage::GetRule(request))?;
        Ok(table.into_iter().filter_map(rule).collect())
    }

    /// Deletes a rule that was listed.
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<()> {
        self.change(
            || format!("delete rule {} to table {}", rule.priority, rule.table),
            RouteNetlinkMessage::DelRule(rule.message.clone()),
            0,
        )
    }
}

pub(crate) fn rule(message: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else {
        return None;
    };
    let (mut priority, mut table) = (0, message.header.table.into());
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(it) => priority = *it,
            RuleAttribute::Table(it) => table = *it,
            _ => {}
        }
    }
    Some(Rule {
        priority,
        table,
        message,
    })
}
