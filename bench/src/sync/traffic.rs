//! Bytes that the agent receives from the API server.

use anyhow::Result;
use ipip_lab::api_server::ApiServer;
use ipip_testkit::shell;
use std::{
    collections::HashMap,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// How often the connections' counters are read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Bytes that the agent receives during `time`.
pub fn received(server: &ApiServer, time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let mut before = received_by_connection(server)?;
    let mut sum = 0;
    while Instant::now() < end {
        thread::sleep(POLL_INTERVAL);
        // When a watch ends, the agent starts the next on a new connection, which counts from 0.
        let now = received_by_connection(server)?;
        for (local, bytes) in &now {
            sum += bytes.saturating_sub(before.get(local).copied().unwrap_or_default());
        }
        before = now;
    }
    Ok(sum)
}

/// The bytes that each connection of the agent has received so far, by its local address.
fn received_by_connection(server: &ApiServer) -> Result<HashMap<String, u64>> {
    let mut command = Command::new("ss");
    command.args(["-tinpH", "state", "established", "dport = :6443"]);
    let text = shell::printed("ss", Ok(server.host().output(&mut command)?))?;
    parse(&text)
}

/// `ss` prints two lines for each connection: queues, local address, remote address and process; then,
/// indented, counters such as `bytes_received:1234`.
fn parse(text: &str) -> Result<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    let mut local = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if !line.starts_with(char::is_whitespace) {
            local = words.nth(2).filter(|_| line.contains("ipip-agent"));
            continue;
        }
        let bytes = words.find_map(|word| word.strip_prefix("bytes_received:"));
        if let (Some(local), Some(bytes)) = (local, bytes) {
            counts.insert(local.into(), bytes.parse()?);
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_of_the_agent_count() {
        let text = concat!(
            "0 0 192.0.2.1:40000 192.0.2.1:6443 users:((\"ipip-agent\",pid=7,fd=9))\n",
            "\t cubic wscale:7,7 bytes_sent:10 bytes_received:1234 segs_out:4\n",
            "0 0 192.0.2.1:40002 192.0.2.1:6443 users:((\"kubectl\",pid=8,fd=9))\n",
            "\t cubic wscale:7,7 bytes_sent:10 bytes_received:99 segs_out:4\n",
        );
        let expected = HashMap::from([("192.0.2.1:40000".to_string(), 1234)]);
        assert_eq!(parse(text).unwrap(), expected);
    }
}
