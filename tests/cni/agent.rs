//! The agent installs the plugins and, once pods can work, the plugin list for container runtimes.

use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, LabNode, Topology};
use ipip_testkit::{cni_node::PLUGINS, shell, wait};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    thread,
    time::Duration,
};
use tempfile::TempDir;

const INSTALLED: [&str; 5] = ["ipip", "host-local", "portmap", "bandwidth", "loopback"];

/// The agent polls the files every second, and resyncs every 30 seconds. The machine may be busy.
const SOON: Duration = Duration::from_secs(10);

/// A node whose agent installs plugins and the list into folders of this test.
struct Installation {
    lab: Lab,
    folder: TempDir,
}

impl Installation {
    /// Prepares the folders and the node. No agent runs yet.
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let source = folder.path().join("source");
        fs::create_dir(&source)?;
        for plugin in &INSTALLED[1..] {
            fs::copy(format!("{PLUGINS}/{plugin}"), source.join(plugin))?;
        }
        fs::copy(shell::own_program("ipip")?, source.join("ipip"))?;
        let mut topology = Topology::one_realm();
        topology.nodes.truncate(1);
        topology.agent.cni_bin_source = Some(source);
        topology.agent.cni_bin_dir = Some(folder.path().join("bin"));
        topology.agent.cni_conf_dir = Some(folder.path().join("net.d"));
        let lab = Lab::build(topology)?;
        Ok(Self { lab, folder })
    }

    fn running() -> Result<Self> {
        let installation = Self::new()?;
        installation.lab.start_agents()?;
        Ok(installation)
    }

    fn node(&self) -> &LabNode {
        &self.lab.nodes()[0]
    }

    fn list(&self) -> PathBuf {
        self.folder.path().join("net.d/01-ipip.conflist")
    }

    fn installed(&self, plugin: &str) -> PathBuf {
        self.folder.path().join("bin").join(plugin)
    }

    /// Starts the agent with an inventory that it refuses, waits until the datapath is loaded, and returns the inventory
    /// that was there.
    fn start_without_inventory(&self) -> Result<String> {
        let inventory = self.lab.inventory_path();
        let good = fs::read_to_string(&inventory)?;
        fs::write(&inventory, "nodes: nonsense\n")?;
        self.node().start_agent()?;
        wait::until("the agent has loaded the datapath", || {
            Ok(self.node().pins().exist() && self.node().ready().is_ok())
        })?;
        Ok(good)
    }

    fn read_list(&self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.list())?)?)
    }
}

#[test]
fn the_list_is_written_when_the_datapath_is_ready_and_never_before() -> Result<()> {
    let installation = Installation::new()?;
    let good = installation.start_without_inventory()?;
    thread::sleep(Duration::from_millis(500));
    ensure!(
        !installation.list().exists(),
        "the list was written before the datapath is ready"
    );
    fs::write(installation.lab.inventory_path(), good)?;
    installation.node().wait_ready(Duration::from_secs(60))?;
    let list = installation.read_list()?;
    ensure!(list["cniVersion"] == "1.0.0", "{list}");
    ensure!(list["cniVersions"] == serde_json::json!(["0.4.0", "1.0.0", "1.1.0"]));
    let subnet = &list["plugins"][0]["ipam"]["ranges"][0][0]["subnet"];
    ensure!(
        *subnet == installation.node().spec().pod_cidr.to_string(),
        "{list}"
    );
    let types: Vec<_> = list["plugins"]
        .as_array()
        .context("no plugins")?
        .iter()
        .collect();
    let types: Vec<_> = types.iter().map(|it| it["type"].clone()).collect();
    ensure!(types == ["ipip", "portmap", "bandwidth"], "{list}");
    Ok(())
}

#[test]
fn a_list_that_is_changed_or_deleted_is_repaired_at_once() -> Result<()> {
    let installation = Installation::running()?;
    let good = installation.read_list()?;
    fs::write(installation.list(), "{}")?;
    wait::within(SOON, "a changed list is repaired", || {
        Ok(installation.read_list().is_ok_and(|list| list == good))
    })?;
    fs::remove_file(installation.list())?;
    wait::within(SOON, "a deleted list is written again", || {
        Ok(installation.list().exists())
    })
}

/// Service meshes and loggers append themselves to the list of the node's network.
#[test]
fn a_plugin_that_others_append_is_kept_and_survives_a_boot_and_the_list_is_not_written_again()
-> Result<()> {
    let installation = Installation::running()?;
    let mut list = installation.read_list()?;
    fs::write(installation.installed("logger"), "")?;
    let plugins = list["plugins"].as_array_mut().context("no plugins")?;
    plugins.push(serde_json::json!({"type": "logger", "level": 3}));
    // In one line, unlike ours.
    fs::write(installation.list(), list.to_string())?;
    let inode = || -> Result<u64> { Ok(fs::metadata(installation.list())?.ino()) };
    let written = inode()?;
    // The agent has seen the list when it has repaired another file after it.
    fs::write(installation.installed("portmap"), "broken")?;
    wait::within(SOON, "a broken plugin is repaired", || {
        Ok(fs::read(installation.installed("portmap"))? == fs::read(format!("{PLUGINS}/portmap"))?)
    })?;
    ensure!(installation.read_list()? == list && inode()? == written);
    // Our own entries stay ours.
    let mut broken = list.clone();
    broken["plugins"][0]["ipam"]["ranges"] = serde_json::json!([]);
    fs::write(installation.list(), broken.to_string())?;
    wait::within(SOON, "our entry is repaired", || {
        Ok(installation.read_list().is_ok_and(|it| it == list))
    })?;
    // A boot: no agent, no pins, and perhaps no list.
    installation.node().stop_agent()?;
    installation
        .node()
        .enter(|| ipip_datapath::remove(installation.node().pins()))??;
    fs::remove_dir_all(installation.node().pins().root()).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let good = installation.start_without_inventory()?;
    ensure!(
        installation.read_list().is_err(),
        "the list is valid before the datapath is ready"
    );
    fs::write(installation.lab.inventory_path(), good)?;
    installation.node().wait_ready(Duration::from_secs(60))?;
    ensure!(
        installation.read_list()? == list,
        "{}",
        installation.read_list()?
    );
    Ok(())
}

#[test]
fn a_list_of_ours_under_an_earlier_name_is_replaced_with_the_plugins_of_others() -> Result<()> {
    let installation = Installation::new()?;
    let earlier = installation.list().with_file_name("10-ipip.conflist");
    fs::create_dir_all(earlier.parent().context("no folder")?)?;
    fs::create_dir_all(installation.folder.path().join("bin"))?;
    fs::write(installation.installed("logger"), "")?;
    let text = r#"{"name": "ipip", "plugins": [{"type": "ipip"}, {"type": "logger"}]}"#;
    fs::write(&earlier, text)?;
    let multus = earlier.with_file_name("00-multus.conf");
    fs::write(&multus, r#"{"type": "multus-shim"}"#)?;
    installation.lab.start_agents()?;
    let list = installation.read_list()?;
    ensure!(list["plugins"][1]["type"] == "logger", "{list}");
    ensure!(!earlier.exists() && multus.exists());
    let log = installation.node().log_tail(100);
    ensure!(!log.contains("multus"), "{log}");
    Ok(())
}

#[test]
fn plugins_are_installed_whole_and_only_where_they_differ() -> Result<()> {
    let installation = Installation::running()?;
    for plugin in INSTALLED {
        let (from, to) = (
            installation.folder.path().join("source").join(plugin),
            installation.installed(plugin),
        );
        ensure!(fs::read(&from)? == fs::read(&to)?, "{plugin} differs");
        ensure!(fs::metadata(&to)?.permissions().mode() & 0o777 == 0o755);
    }
    let inodes = || -> Result<Vec<u64>> {
        let inode = |plugin: &&str| Ok(fs::metadata(installation.installed(plugin))?.ino());
        INSTALLED.iter().map(inode).collect()
    };
    let before = inodes()?;
    installation.node().stop_agent()?;
    installation.node().restart_agent()?;
    ensure!(
        inodes()? == before,
        "plugins that were not changed were installed again"
    );
    // A broken plugin is replaced by another file in one step.
    fs::write(installation.installed("portmap"), "broken")?;
    wait::within(SOON, "a broken plugin is repaired", || {
        Ok(fs::read(installation.installed("portmap"))? == fs::read(format!("{PLUGINS}/portmap"))?)
    })?;
    let names = fs::read_dir(installation.folder.path().join("bin"))?.count();
    ensure!(names == INSTALLED.len(), "a temporary file is left");
    Ok(())
}

#[test]
fn without_the_plugins_that_pods_need_there_is_no_list_and_the_reason_is_reported() -> Result<()> {
    let installation = Installation::new()?;
    fs::remove_file(installation.folder.path().join("source/ipip"))?;
    installation.node().start_agent()?;
    wait::until("/readyz names the missing plugin", || {
        Ok(installation.node().ready().is_ok_and(|it| {
            it.status != 200 && it.body.contains("source/ipip") && it.body.contains("remedy")
        }))
    })?;
    ensure!(!installation.list().exists());
    Ok(())
}

#[test]
fn a_list_of_another_network_is_reported_and_left_alone() -> Result<()> {
    let installation = Installation::new()?;
    let other = installation.folder.path().join("net.d/05-other.conflist");
    fs::create_dir_all(installation.folder.path().join("net.d"))?;
    fs::write(&other, "{}")?;
    installation.lab.start_agents()?;
    wait::until("the agent logs the other list", || {
        Ok(installation
            .node()
            .log_tail(100)
            .contains("05-other.conflist"))
    })?;
    ensure!(fs::read_to_string(&other)? == "{}" && installation.list().exists());
    Ok(())
}

#[test]
fn uninstall_removes_the_list_and_keeps_the_plugins_for_pods_that_still_run() -> Result<()> {
    let installation = Installation::running()?;
    installation.node().stop_agent()?;
    ensure!(installation.list().exists(), "SIGTERM leaves the list");
    let mut command = installation.node().agent_command()?;
    let output = installation.node().output(command.arg("uninstall"))?;
    shell::printed("uninstall", Ok(output))?;
    ensure!(!installation.list().exists(), "the list is still there");
    ensure!(installation.installed("ipip").exists());
    Ok(())
}
