use super::*;
use crate::nodes::inventory::Inventory;
use std::os::unix::fs::symlink;
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::timeout,
};

fn text(pod_cidr: &str) -> String {
    format!("nodes:\n  - {{name: a1, internalIPs: [10.0.0.11], podCIDRs: [{pod_cidr}]}}\n")
}

struct Watched {
    updates: Receiver<Update>,
}

impl Watched {
    fn start(path: &Path) -> Self {
        let (sender, updates) = channel(4);
        tokio::spawn(FileSource::new(path, "a1").watch(sender));
        Self { updates }
    }

    async fn next(&mut self) -> Update {
        timeout(Duration::from_secs(5), self.updates.recv())
            .await
            .expect("an update comes")
            .expect("the source runs")
    }

    /// Waits for longer than the source takes to detect a change.
    async fn expect_nothing(&mut self) {
        let wait = 3 * POLL + QUIET_PERIOD;
        timeout(wait, self.updates.recv()).await.unwrap_err();
    }

    async fn expect(&mut self, pod_cidr: &str) {
        let Inventory { nodes, .. } = self.next().await.expect("a good inventory");
        assert_eq!(nodes[0].pod_cidrs[0].to_string(), pod_cidr);
    }
}

fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

/// Updates a ConfigMap as the kubelet does: creates a new folder and swaps the link `..data` to it.
fn swap(folder: &Path, number: u8, text: &str) {
    let version = format!("..2026_{number}");
    fs::create_dir(folder.join(&version)).unwrap();
    fs::write(folder.join(&version).join("inventory.yaml"), text).unwrap();
    let fresh = folder.join("..data_tmp");
    symlink(version, &fresh).unwrap();
    fs::rename(fresh, folder.join("..data")).unwrap();
}

#[tokio::test]
async fn a_file_written_in_place_and_one_renamed_over_it_are_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("inventory.yaml");
    fs::write(&path, text("10.42.1.0/24")).unwrap();
    let mut watched = Watched::start(&path);
    watched.expect("10.42.1.0/24").await;
    fs::write(&path, text("10.42.2.0/24")).unwrap();
    watched.expect("10.42.2.0/24").await;
    replace(&path, &text("10.42.3.0/24"));
    watched.expect("10.42.3.0/24").await;
    replace(&path, &text("10.42.4.0/24"));
    watched.expect("10.42.4.0/24").await;
}

#[tokio::test]
async fn a_config_map_is_followed_through_its_swapped_link() {
    let folder = TempDir::new().unwrap();
    swap(folder.path(), 1, &text("10.42.1.0/24"));
    let path = folder.path().join("inventory.yaml");
    symlink("..data/inventory.yaml", &path).unwrap();
    let mut watched = Watched::start(&path);
    watched.expect("10.42.1.0/24").await;
    for number in 2..5 {
        swap(
            folder.path(),
            number,
            &text(&format!("10.42.{number}.0/24")),
        );
        watched.expect(&format!("10.42.{number}.0/24")).await;
    }
}

#[tokio::test]
async fn a_file_behind_a_link_into_another_folder_is_followed_and_so_is_a_new_link() {
    let folder = TempDir::new().unwrap();
    for name in ["one", "two", "etc"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let [one, two, path] = ["one/real.yaml", "two/real.yaml", "etc/inventory.yaml"]
        .map(|name| folder.path().join(name));
    fs::write(&one, text("10.42.1.0/24")).unwrap();
    fs::write(&two, text("10.42.3.0/24")).unwrap();
    symlink(&one, &path).unwrap();
    let mut watched = Watched::start(&path);
    watched.expect("10.42.1.0/24").await;
    replace(&one, &text("10.42.2.0/24"));
    watched.expect("10.42.2.0/24").await;
    let fresh = folder.path().join("etc/fresh");
    symlink("../two/real.yaml", &fresh).unwrap();
    fs::rename(fresh, &path).unwrap();
    watched.expect("10.42.3.0/24").await;
    replace(&two, &text("10.42.4.0/24"));
    watched.expect("10.42.4.0/24").await;
}

#[tokio::test]
async fn an_absent_file_is_refused_with_its_remedy_and_read_when_it_appears() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("inventory.yaml");
    let mut watched = Watched::start(&path);
    let refusal = watched.next().await.unwrap_err().to_string();
    assert!(
        refusal.contains(path.to_str().unwrap()) && refusal.contains("remedy"),
        "{refusal}"
    );
    fs::write(&path, text("10.42.1.0/24")).unwrap();
    watched.expect("10.42.1.0/24").await;
}

#[tokio::test]
async fn an_invalid_value_keeps_the_last_valid_one_and_text_that_is_no_inventory_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("inventory.yaml");
    fs::write(&path, text("10.42.1.0/24")).unwrap();
    let mut watched = Watched::start(&path);
    watched.expect("10.42.1.0/24").await;
    let joined = "  - {name: b1, podCIDRs: [10.42.2.0/24]}\n";
    replace(&path, &(text("10.42.1.0/240") + joined));
    let inventory = watched.next().await.unwrap();
    assert_eq!(inventory.nodes[0].pod_cidrs[0].to_string(), "10.42.1.0/24");
    assert_eq!(inventory.nodes[1].name, "b1");
    let why = inventory.left_out["a1"][0].to_string();
    for part in ["line 2", "podCIDRs", "10.42.1.0/240", "remedy"] {
        assert!(why.contains(part), "{part} is not in {why}");
    }
    replace(&path, "nodes: [");
    let refusal = watched.next().await.unwrap_err().to_string();
    assert!(refusal.contains("line 1"), "{refusal}");
    replace(&path, "nodes: [");
    watched.expect_nothing().await;
    replace(&path, &text("10.42.5.0/24"));
    watched.expect("10.42.5.0/24").await;
}

#[tokio::test]
async fn a_loop_of_links_is_refused_and_its_replacement_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("loop");
    symlink("loop", &path).unwrap();
    let mut watched = Watched::start(&path);
    let refusal = watched.next().await.unwrap_err().to_string();
    assert!(refusal.contains("cannot read"), "{refusal}");
    replace(&path, &text("10.42.1.0/24"));
    watched.expect("10.42.1.0/24").await;
}

#[tokio::test]
async fn a_write_that_leaves_the_stamp_as_it_was_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("inventory.yaml");
    fs::write(&path, text("10.42.1.0/24")).unwrap();
    let mut watched = Watched::start(&path);
    watched.expect("10.42.1.0/24").await;
    // Within the clock tick of the first write, if the machine is fast enough.
    fs::write(&path, text("10.42.2.0/24")).unwrap();
    watched.expect("10.42.2.0/24").await;
}
