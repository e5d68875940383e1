//! AppArmor on the nodes.

use crate::{DEBIAN, Nodes};
use anyhow::{Context, Result, ensure};
use ipip_testkit::{harness::Test, tests};
use serde_json::Value;

/// The profile that containerd loads, and applies to containers without a profile of their own.
pub const PROFILE: &str = "cri-containerd.apparmor.d";

/// Takes away the field that lets the agent run without a profile.
const CONFINED: &str = "patches:
  - patch: |-
      apiVersion: apps/v1
      kind: DaemonSet
      metadata:
        name: ipip-agent
        namespace: kube-system
      spec:
        template:
          spec:
            containers:
              - name: agent
                securityContext:
                  appArmorProfile: null
";

pub const TESTS: &[Test<Nodes>] = tests![
    without_its_apparmor_field_the_agent_does_not_start_and_says_why,
    pods_are_confined_by_the_profile_of_containerd_that_is_enforced,
];

/// The first test: as soon as the agent has made its folder, it needs no right to write below `/sys/fs`.
fn without_its_apparmor_field_the_agent_does_not_start_and_says_why(
    nodes: &mut Nodes,
) -> Result<()> {
    let site = &nodes.site;
    ensure!(!nodes.has_network, "another test has started the agent");
    site.apply_overlay(&format!("{DEBIAN}{CONFINED}"))?;
    let mut said = String::new();
    site.wait("an agent fails", || {
        let pods =
            site.get("pods --namespace=kube-system --selector=app.kubernetes.io/component=agent")?;
        let pods = pods["items"].as_array().map_or(&[][..], Vec::as_slice);
        said = pods.iter().find_map(last_words).unwrap_or_default();
        Ok(!said.is_empty())
    })?;
    eprintln!("        {said}");
    ensure!(
        said.contains("/sys/fs/bpf") && said.contains("appArmorProfile"),
        "the agent failed for another reason: {said}"
    );
    Ok(())
}

/// Why the container of a pod ended.
fn last_words(pod: &Value) -> Option<String> {
    let status = &pod["status"]["containerStatuses"][0];
    let ended = ["lastState", "state"].map(|state| &status[state]["terminated"]["message"]);
    ended.iter().find_map(|it| it.as_str().map(str::to_owned))
}

fn pods_are_confined_by_the_profile_of_containerd_that_is_enforced(
    nodes: &mut Nodes,
) -> Result<()> {
    let site = nodes.with_network()?;
    let enforced = format!("{PROFILE} (enforce)");
    for machine in &site.machines {
        let loaded = machine.shell("cat /sys/kernel/security/apparmor/profiles")?;
        ensure!(loaded.contains(&enforced), "{loaded}");
        let pod = format!("on-{}", machine.name());
        let current = site
            .in_pod(&pod, "cat /proc/self/attr/current")
            .context("reading the profile of a pod")?;
        ensure!(current.trim() == enforced, "{pod} runs as {current}");
    }
    Ok(())
}
