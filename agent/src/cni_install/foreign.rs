//! Plugins that other programs have added to our list (service meshes, loggers): they stay, at their place.

use super::{
    conflist::{NETWORK, PLUGIN},
    plugins::CHAINED,
};
use serde_json::Value;

/// Whether this is a list of our network that can be used: other programs may have changed it.
pub fn is_ours(list: &Value) -> bool {
    let mut plugins = plugins(list).iter();
    list["name"] == NETWORK && plugins.any(|plugin| plugin["type"] == PLUGIN)
}

/// Our list `own` with what other programs have added to `found`, an earlier state of it: fields, and plugins. Each
/// such plugin comes after the plugin that it came after.
pub fn keep(own: Value, found: &Value) -> Value {
    let mut merged = own;
    for (field, value) in found.as_object().into_iter().flatten() {
        if merged.get(field).is_none() {
            merged[field] = value.clone();
        }
    }
    let mut kept = plugins(&merged).to_vec();
    let mut previous: Option<&Value> = None;
    for plugin in plugins(found) {
        if is_foreign(plugin) {
            let after = |previous: &Value| kept.iter().rposition(|it| it["type"] == *previous);
            let place = match previous {
                Some(previous) => after(&previous["type"]).map_or(kept.len(), |place| place + 1),
                None => 0,
            };
            kept.insert(place, plugin.clone());
        }
        previous = Some(plugin);
    }
    merged["plugins"] = kept.into();
    merged
}

/// The list without the plugins of others that `is_there` does not find.
pub fn without_absent(mut list: Value, is_there: impl Fn(&str) -> bool) -> Value {
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins
            .retain(|plugin| !is_foreign(plugin) || plugin["type"].as_str().is_some_and(&is_there));
    }
    list
}

fn plugins(list: &Value) -> &[Value] {
    list["plugins"].as_array().map_or(&[], Vec::as_slice)
}

fn is_foreign(plugin: &Value) -> bool {
    let mut own = CHAINED.iter().chain([&PLUGIN]);
    !own.any(|own| plugin["type"] == **own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(types: &[&str]) -> Value {
        let plugins: Vec<Value> = types.iter().map(|kind| json!({"type": kind})).collect();
        json!({"name": NETWORK, "plugins": plugins})
    }

    fn types(list: &Value) -> Vec<&str> {
        let types = plugins(list).iter().map(|plugin| plugin["type"].as_str());
        types.map(Option::unwrap).collect()
    }

    #[test]
    fn plugins_of_others_keep_their_place() {
        let own = || list(&["ipip", "portmap", "bandwidth"]);
        for (found, wanted) in [
            (
                vec!["ipip", "portmap", "bandwidth"],
                vec!["ipip", "portmap", "bandwidth"],
            ),
            (
                vec!["ipip", "portmap", "bandwidth", "istio-cni"],
                vec!["ipip", "portmap", "bandwidth", "istio-cni"],
            ),
            (
                vec!["ipip", "logger", "portmap", "linkerd-cni", "istio-cni"],
                vec![
                    "ipip",
                    "logger",
                    "portmap",
                    "linkerd-cni",
                    "istio-cni",
                    "bandwidth",
                ],
            ),
            (
                vec!["first", "ipip", "logger", "logger"],
                vec!["first", "ipip", "logger", "logger", "portmap", "bandwidth"],
            ),
        ] {
            let merged = keep(own(), &list(&found));
            assert_eq!(types(&merged), wanted);
            assert_eq!(keep(own(), &merged), merged, "the second time");
        }
    }

    #[test]
    fn a_plugin_behind_one_that_is_no_longer_ours_is_kept() {
        let merged = keep(list(&["ipip"]), &list(&["ipip", "portmap", "logger"]));
        assert_eq!(types(&merged), ["ipip", "logger"]);
    }

    #[test]
    fn own_entries_are_ours_and_unknown_fields_are_kept() {
        let mut found = list(&["ipip", "logger"]);
        found["plugins"][0]["mtu"] = json!(9000);
        found["disableCheck"] = json!(true);
        let merged = keep(list(&["ipip"]), &found);
        assert_eq!(merged["plugins"][0], json!({"type": "ipip"}));
        assert_eq!(merged["disableCheck"], true);
    }

    #[test]
    fn a_list_without_our_plugin_is_not_ours() {
        assert!(is_ours(&list(&["ipip", "logger"])));
        for other in [
            json!({}),
            list(&["bridge"]),
            json!({"name": "x", "plugins": [{"type": "ipip"}]}),
        ] {
            assert!(!is_ours(&other), "{other}");
        }
    }

    #[test]
    fn only_plugins_of_others_can_be_absent() {
        let list = without_absent(list(&["ipip", "gone", "there"]), |kind| kind == "there");
        assert_eq!(types(&list), ["ipip", "there"]);
    }
}
