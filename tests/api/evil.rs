//! The node `evil`, which writes its objects with the token of its own agent.

use crate::agent::field;
use anyhow::{Result, ensure};
use ipip_lab::api_server::ApiServer;

/// The node `evil`. What it writes replaces what it wrote before.
pub struct Evil<'a> {
    server: &'a ApiServer,
    token: String,
    uid: String,
}

impl<'a> Evil<'a> {
    /// The node whose Node exists.
    pub fn of(server: &'a ApiServer) -> Result<Self> {
        Ok(Self {
            server,
            token: server.agent_token("evil")?,
            uid: field(server, "node", "evil", "{.metadata.uid}")?,
        })
    }

    /// Runs kubectl with an object of this node in a file. Returns what it prints, as an error if it fails.
    pub fn kubectl(
        &self,
        arguments: &[&str],
        (kind, name, spec): (&str, &str, &str),
    ) -> Result<Result<String, String>> {
        let text = format!(
            "{{apiVersion: ipip.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}, ownerReferences: [{{apiVersion: v1, kind: Node, name: evil, uid: {}}}]}}, spec: {{{spec}}}}}",
            self.uid
        );
        let path = self.server.folder().join("evil.yaml");
        std::fs::write(&path, text)?;
        let path = path.display().to_string();
        let file = ["--validate=false", "-f", &path];
        let output = self
            .server
            .kubectl_as(&self.token, &[arguments, &file].concat())?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(if output.status.success() {
            Ok(text)
        } else {
            Err(text)
        })
    }

    /// Writes an object. Returns what the API server says.
    pub fn apply(&self, kind: &str, name: &str, spec: &str) -> Result<Result<String, String>> {
        let apply = ["apply", "--server-side", "--force-conflicts"];
        self.kubectl(&apply, (kind, name, spec))
    }

    /// Writes an object, which the API server accepts.
    pub fn writes(&self, kind: &str, name: &str, spec: &str) -> Result<()> {
        let answer = self.apply(kind, name, spec)?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(())
    }
}
