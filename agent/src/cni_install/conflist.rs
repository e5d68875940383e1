//! The network configuration list for container runtimes (CNI specification, section 1).

use super::Error;
use crate::config::Config;
use ipip_datapath::{AttachMode, DEFAULT_PIN_ROOT, LEASES_DIR};
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};
use std::path::Path;

/// The name of our network.
pub const NETWORK: &str = "ipip";
/// The type of our plugin.
pub const PLUGIN: &str = "ipip";

/// Returns our list for a node with the pod CIDRs `pods`, without plugins of others. `chained` are the installed
/// plugins out of [`CHAINED`](super::plugins::CHAINED).
///
/// # Errors
/// [`Error::NoRange`] if `pods` is empty.
pub fn render(config: &Config, pods: &[Ipv4Network], chained: &[&str]) -> Result<Value, Error> {
    if pods.is_empty() {
        return Err(Error::NoRange);
    }
    // One set of ranges: a pod gets one address from any of them.
    let ranges: Vec<Value> = pods.iter().map(|cidr| json!({"subnet": cidr})).collect();
    let mut capabilities = json!({"mac": true, "ips": true});
    if chained.contains(&"bandwidth") {
        // Packets of a rate-limited pod must not take the fast path, which bypasses the limits.
        capabilities["bandwidth"] = json!(true);
    }
    let mut ipip = json!({
        "type": PLUGIN,
        "capabilities": capabilities,
        "ipam": {"type": "host-local", "dataDir": LEASES_DIR, "ranges": [ranges]},
    });
    if config.pin_root != Path::new(DEFAULT_PIN_ROOT) {
        ipip["pinRoot"] = json!(config.pin_root);
    }
    if config.attach != AttachMode::Auto {
        ipip["attach"] = json!(config.attach.to_string());
    }
    let chained = chained.iter().map(|plugin| match *plugin {
        "portmap" => json!({"type": plugin, "capabilities": {"portMappings": true}, "snat": true}),
        plugin => json!({"type": plugin, "capabilities": {plugin: true}}),
    });
    let plugins: Vec<Value> = [ipip].into_iter().chain(chained).collect();
    Ok(json!({
        // The newest version that containerd 1.6 reads. Newer runtimes choose from `cniVersions`.
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": plugins,
    }))
}

/// The text of a list, as it is written.
pub fn text(list: &Value) -> String {
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;

    fn config(pairs: &[(&'static str, &str)]) -> Config {
        from_pairs("a1", pairs)
    }

    fn parsed(pairs: &[(&'static str, &str)], chained: &[&str]) -> Value {
        let pods = ["10.42.1.0/24", "10.43.1.0/24"].map(|cidr| cidr.parse().unwrap());
        render(&config(pairs), &pods, chained).unwrap()
    }

    #[test]
    fn the_list_has_version_1_0_0_and_offers_the_other_versions() {
        let list = parsed(&[], &["portmap", "bandwidth"]);
        assert_eq!(list["cniVersion"], "1.0.0");
        assert_eq!(list["cniVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]));
        let types: Vec<_> = list["plugins"].as_array().unwrap().iter().collect();
        let types: Vec<_> = types.iter().map(|plugin| &plugin["type"]).collect();
        assert_eq!(types, ["ipip", "portmap", "bandwidth"]);
        assert_eq!(list["plugins"][1]["capabilities"]["portMappings"], true);
        assert_eq!(list["plugins"][2]["capabilities"]["bandwidth"], true);
        assert_eq!(list["plugins"][0]["capabilities"]["bandwidth"], true);
        let alone = parsed(&[], &["portmap"]);
        assert!(
            alone["plugins"][0]["capabilities"]
                .get("bandwidth")
                .is_none()
        );
    }

    #[test]
    fn pods_get_one_address_out_of_all_pod_cidrs() {
        let list = parsed(&[], &[]);
        assert_eq!(
            list["plugins"][0]["ipam"]["ranges"],
            json!([[{"subnet": "10.42.1.0/24"}, {"subnet": "10.43.1.0/24"}]])
        );
        assert!(matches!(
            render(&config(&[]), &[], &[]),
            Err(Error::NoRange)
        ));
    }

    #[test]
    fn the_plugin_is_given_only_settings_that_differ_from_the_default() {
        let plain = parsed(&[], &[]);
        assert!(plain["plugins"][0].get("pinRoot").is_none());
        let list = parsed(&[("pinRoot", "/sys/fs/bpf/x"), ("attach", "clsact")], &[]);
        assert_eq!(list["plugins"][0]["pinRoot"], "/sys/fs/bpf/x");
        assert_eq!(list["plugins"][0]["attach"], "clsact");
    }
}
