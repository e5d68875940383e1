//! What the running agent says of the paths to peers.

use ipip_datapath::PATHS_SOCKET;
use serde::Deserialize;
use std::{
    collections::HashMap,
    io::{self, Read},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// One candidate of a peer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPath {
    peer: String,
    /// Its name.
    pub candidate: String,
    /// Whether it is better by itself than the path in use.
    pub is_better: bool,
    /// Why it is used or not.
    pub why: String,
}

/// The candidates of each peer, by the node's name; none if no agent runs, or it is of another version.
pub fn read(state_dir: &Path) -> HashMap<String, Vec<AgentPath>> {
    let Ok(paths) = ask(state_dir) else {
        return HashMap::new();
    };
    let mut by_peer: HashMap<String, Vec<AgentPath>> = HashMap::new();
    for path in paths {
        by_peer.entry(path.peer.clone()).or_default().push(path);
    }
    by_peer
}

fn ask(state_dir: &Path) -> io::Result<Vec<AgentPath>> {
    let mut stream = UnixStream::connect(state_dir.join(PATHS_SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, os::unix::net::UnixListener, thread};

    #[test]
    fn the_candidates_of_each_peer_are_read_and_without_an_agent_there_are_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).is_empty());
        let listener = UnixListener::bind(folder.path().join(PATHS_SOCKET)).unwrap();
        let answers = [
            r#"[{"peer":"b1","candidate":"private-ipip","address":"10.0.0.1","inUse":false,"isBetter":true,"why":"rests 4 s"}]"#,
            "{",
        ];
        let agent = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let paths = read(folder.path());
        let b1 = &paths["b1"][0];
        assert_eq!(
            (b1.candidate.as_str(), b1.why.as_str()),
            ("private-ipip", "rests 4 s")
        );
        assert!(b1.is_better);
        assert!(read(folder.path()).is_empty());
        agent.join().unwrap();
    }
}
