//! A firewall in a network namespace that forwards packets: a cloud's gateway, or a node.

use anyhow::{Context, Result};
use ipip_testkit::{host::Host, shell};
use std::process::Command;

/// Rules that drop forwarded packets. Dropping this value removes them.
#[derive(Debug)]
pub struct Firewall<'a> {
    gateway: &'a Host,
}

impl<'a> Firewall<'a> {
    /// Begins to drop the packets that satisfy one of these nftables expressions.
    pub fn start(gateway: &'a Host, matches: &[&str]) -> Result<Self> {
        let rules: String = matches
            .iter()
            .map(|it| format!("{it} counter drop\n"))
            .collect();
        let hook = "type filter hook forward priority 10;";
        gateway.nft(&format!(
            "table ip blocked {{ chain forward {{ {hook}\n{rules} }}; }}"
        ))?;
        Ok(Self { gateway })
    }

    /// Packets that each rule has dropped.
    pub fn dropped(&self) -> Result<Vec<u64>> {
        counted(self.gateway, "blocked")
    }
}

/// The packets that each rule with a counter has counted, in the nftables table `ip TABLE`.
pub fn counted(host: &Host, table: &str) -> Result<Vec<u64>> {
    let list = ["list", "table", "ip", table];
    let output = host.output(Command::new("nft").args(list));
    let rules = shell::printed(&format!("nft list table ip {table}"), Ok(output?))?;
    let counts = rules
        .lines()
        .filter_map(|it| it.split_once("counter packets "));
    let count = |(_, rest): (&str, &str)| {
        let (count, _) = rest.split_once(' ').context("no count")?;
        Ok(count.parse()?)
    };
    counts.map(count).collect()
}

impl Drop for Firewall<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.gateway.nft("delete table ip blocked") {
            eprintln!("removing a firewall: {error:#}");
        }
    }
}
