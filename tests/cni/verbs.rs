//! Verbs, versions and error codes.

use anyhow::{Result, ensure};
use ipip_netlink::Netlink;
use ipip_testkit::cni_node::CniNode;
use serde_json::json;
use std::{
    fs,
    time::{Duration, Instant},
};

#[test]
fn version_reads_no_stdin_and_names_every_version() -> Result<()> {
    let node = CniNode::bare()?;
    let mut child = node.call("VERSION", "", None).command()?.spawn()?;
    // Its stdin stays open and empty. A read would never return.
    let stdin = child.stdin.take();
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended = child.try_wait()?.is_some();
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(ended, "the plugin waits for its stdin");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(printed["supportedVersions"] == json!(["0.4.0", "1.0.0", "1.1.0"]));
    Ok(())
}

#[test]
fn results_and_errors_are_in_the_version_of_the_configuration() -> Result<()> {
    let node = CniNode::ready()?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let pod = node.pod(version)?;
        let add = node.call("ADD", version, Some(&pod));
        let add = add.with("cniVersion", json!(version));
        let result = add.run()?.success()?;
        ensure!(result["cniVersion"] == version, "{result}");
        ensure!(
            (result["ips"][0]["version"] == "4") == (version == "0.4.0"),
            "{result}"
        );
        ensure!(
            result["interfaces"][1]["mtu"].is_number() == (version == "1.1.0"),
            "{result}"
        );
        let again = add.run()?;
        again.failure(103, &["DEL"])?;
        ensure!(again.printed["cniVersion"] == version);
        for verb in ["CHECK", "DEL"] {
            let call = node.call(verb, version, Some(&pod));
            let call = call.with("cniVersion", json!(version));
            call.with("prevResult", result.clone()).run()?.success()?;
        }
    }
    node.expect_no_trace()
}

#[test]
fn each_error_has_its_code_a_message_and_details_with_the_remedy() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let add = || node.call("ADD", "c1", Some(&pod));
    let newest = |verb| node.call(verb, "", None).with("cniVersion", json!("1.1.0"));
    for (code, words, call) in [
        (
            1,
            &["0.2.0", "use 0.4.0, 1.0.0, 1.1.0"][..],
            add().with("cniVersion", json!("0.2.0")),
        ),
        (1, &["GC", "use 1.1.0"], node.call("GC", "", None)),
        (3, &["/nonexistent"], add().env("CNI_NETNS", "/nonexistent")),
        (
            4,
            &["CNI_CONTAINERID", "letters"],
            add().env("CNI_CONTAINERID", "a/b"),
        ),
        (
            4,
            &["CNI_IFNAME", "15 bytes"],
            add().env("CNI_IFNAME", "much-too-long-name"),
        ),
        (4, &["CNI_NETNS", "path"], add().env("CNI_NETNS", "")),
        (4, &["CNI_PATH", "folder"], add().env("CNI_PATH", "")),
        (
            4,
            &["CNI_COMMAND", "GROW", "use ADD"],
            add().env("CNI_COMMAND", "GROW"),
        ),
        (
            4,
            &["host's own"],
            add().env("CNI_NETNS", &node.netns_path()),
        ),
        (
            4,
            &["COLOR", "IgnoreUnknown=1"],
            add().env("CNI_ARGS", "COLOR=red"),
        ),
        (6, &["big"], add().with("mtu", json!("big"))),
        (
            7,
            &["mtu", "9000", "at most 1480"],
            add().with("mtu", json!(9000)),
        ),
        (
            7,
            &["attach", "tcx or clsact"],
            add().with("attach", json!("xdp")),
        ),
        (
            7,
            &["nosuch", "install"],
            add().with("ipam", json!({"type": "nosuch"})),
        ),
        (7, &["prevResult"], node.call("CHECK", "c1", Some(&pod))),
        (7, &["valid-attachments"], newest("GC")),
        (
            11,
            &["start ipip-agent"],
            add().with("pinRoot", json!("/sys/fs/bpf/ipip-none")),
        ),
    ] {
        call.run()?.failure(code, words)?;
    }
    node.expect_no_trace()
}

#[test]
fn a_configuration_that_is_no_json_is_code_6() -> Result<()> {
    let node = CniNode::bare()?;
    let mut call = node.call("ADD", "c1", None);
    call.conf = json!("not an object");
    call.run()?.failure(6, &[])
}

#[test]
fn status_is_0_when_ready_50_when_not_and_51_when_limited() -> Result<()> {
    let node = CniNode::bare()?;
    let status = || {
        let call = node.call("STATUS", "", None);
        call.with("cniVersion", json!("1.1.0")).run()
    };
    status()?.failure(50, &["start ipip-agent"])?;
    node.load()?;
    status()?.failure(50, &["no settings yet", "start ipip-agent"])?;
    node.make_ready()?;
    ensure!(status()?.success, "{}", status()?.printed);
    let absent = node
        .call("STATUS", "", None)
        .with("ipam", json!({"type": "nosuch"}));
    absent
        .with("cniVersion", json!("1.1.0"))
        .run()?
        .failure(50, &["nosuch", "install"])?;

    let pin = node.pins().links().join("ipip0@from_host");
    fs::remove_file(pin)?;
    status()?.failure(51, &["from_host", "start ipip-agent"])?;
    node.enter(|| -> Result<()> {
        let mut netlink = Netlink::open()?;
        let link = netlink.link("ipip0")?.expect("it was made");
        Ok(netlink.delete_link(link.index)?)
    })??;
    status()?.failure(51, &["tunnel interface", "start ipip-agent"])
}
