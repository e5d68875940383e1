//! The CNI project's cnitool calls every verb, with chained plugins.

use crate::runtime_node::RuntimeNode;
use anyhow::{Context, Result, ensure};
use ipip_testkit::{shell, wait};
use serde_json::{Value, json};
use std::process::Output;

#[test]
fn cnitool_calls_add_check_del_gc_and_status() -> Result<()> {
    let node = RuntimeNode::start()?;
    let machine = &node.machine;
    let cnitool = |verb: &str, pod: &str, variables: &[&str]| -> Result<Output> {
        let mut command = machine.command("env");
        command.args(["CNI_PATH=/opt/cni/bin", "NETCONFPATH=/etc/cni/net.d"]);
        command.args(variables).args(["cnitool", verb, "ipip", pod]);
        Ok(command.output()?)
    };
    let succeed = |verb: &str, pod: &str, variables: &[&str]| -> Result<String> {
        shell::printed(
            &format!("cnitool {verb}"),
            Ok(cnitool(verb, pod, variables)?),
        )
    };
    machine.run("ip", &["netns", "add", "one"])?;
    let pod = "/run/netns/one";
    let ports = json!({"portMappings": [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}],
                       "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
                                     "egressRate": 8_000_000, "egressBurst": 8_000_000}});
    let chained = format!("CAP_ARGS={ports}");
    let printed = succeed("add", pod, &[&chained])?;
    let result: Value = serde_json::from_str(&printed)?;
    // The newest version in the list.
    ensure!(result["cniVersion"] == "1.1.0", "{result}");
    succeed("check", pod, &[&chained])?;
    let second = cnitool("add", pod, &[])?;
    ensure!(!second.status.success(), "a second ADD succeeded");

    // A port of the node leads to the pod.
    let serve = [
        "netns", "exec", "one", "busybox", "nc", "-l", "-p", "80", "-e", "echo", "hello",
    ];
    let mut server = machine.command("ip").args(serve).spawn()?;
    let answered = wait::until("the mapped port answers", || {
        let answer = machine.output("busybox", &["nc", "-w", "1", "10.0.0.11", "8081"])?;
        Ok(String::from_utf8_lossy(&answer.stdout).contains("hello"))
    });
    let _ = server.kill();
    server.wait()?;
    answered?;

    succeed("status", "", &[])?;
    succeed("del", pod, &[&chained])?;
    succeed("del", pod, &[&chained])?;
    node.expect_no_trace()?;

    // cnitool sends no list of valid attachments: libcni DELs the pods that it has cached, and our GC refuses.
    let refused = |what: &str| -> Result<()> {
        let output = cnitool("gc", "", &[])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && said.contains("valid-attachments is missing"),
            "{what}: {said}"
        );
        Ok(())
    };
    succeed("add", pod, &[])?;
    refused("with a cache of libcni")?;
    node.expect_no_trace()?;
    succeed("add", pod, &[])?;
    let before = node.traces()?;
    machine.run("mv", &["/var/lib/cni/results", "/var/lib/cni/forgotten"])?;
    refused("without a cache of libcni")?;
    ensure!(node.traces()? == before, "{:?}", node.traces()?);
    machine.run("rm", &["-rf", "/var/lib/cni/results"])?;
    machine.run("mv", &["/var/lib/cni/forgotten", "/var/lib/cni/results"])?;
    succeed("del", pod, &[])?;
    node.expect_no_trace()
}

/// Earlier lists named no folder, so host-local used its default.
#[test]
fn pods_keep_their_leases_when_an_upgrade_moves_the_folder_of_leases() -> Result<()> {
    let node = RuntimeNode::start()?;
    let machine = &node.machine;
    let list: Value = serde_json::from_str(&machine.run("cat", &[&node.list()])?)?;
    let mut earlier = list.clone();
    let ipam = earlier["plugins"][0]["ipam"]
        .as_object_mut()
        .context("no ipam")?;
    ipam.remove("dataDir");
    machine.write("/etc/earlier/10-ipip.conflist", &earlier.to_string())?;
    let call = |verb: &str, pod: &str, folder: &str| -> Result<String> {
        let mut command = machine.command("env");
        command.args(["CNI_PATH=/opt/cni/bin", &format!("NETCONFPATH={folder}")]);
        command.args(["cnitool", verb, "ipip", &format!("/run/netns/{pod}")]);
        shell::printed(&format!("cnitool {verb}"), command.output())
    };
    let add = |pod: &str, folder: &str| -> Result<String> {
        machine.run("ip", &["netns", "add", pod])?;
        let result: Value = serde_json::from_str(&call("add", pod, folder)?)?;
        let address = result["ips"][0]["address"].as_str().context("no address")?;
        Ok(address.trim_end_matches("/32").to_owned())
    };
    let first = add("first", "/etc/earlier")?;
    let leases = "/var/lib/cni/networks/ipip";
    machine.run("test", &["-f", &format!("{leases}/{first}")])?;
    machine.write(&format!("{leases}/10.42.0.99"), "lost\r\neth0")?;

    let second = add("second", node.cni.conf)?;
    ensure!(first != second, "{first} was assigned twice");
    let moved = machine.run("ls", &["/run/ipip/ipam/ipip"])?;
    ensure!(moved.contains(&first) && moved.contains(&second), "{moved}");
    ensure!(!moved.contains("10.42.0.99"), "{moved}");
    ensure!(!machine.output("test", &["-e", leases])?.status.success());
    for pod in ["first", "second"] {
        call("check", pod, node.cni.conf)?;
        call("del", pod, node.cni.conf)?;
    }
    node.expect_no_trace()
}
