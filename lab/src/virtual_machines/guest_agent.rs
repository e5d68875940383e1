//! The protocol of QEMU's guest agent: runs programs in a virtual machine, through a socket that needs no network.

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long the agent may take for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two questions whether a program has ended.
const POLL: Duration = Duration::from_millis(100);

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Printed {
    /// The exit code.
    pub code: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A connection to the agent. The agent serves one at a time.
#[derive(Debug)]
pub struct GuestAgent(BufReader<UnixStream>);

impl GuestAgent {
    /// Connects through QEMU's socket. Fails after `max_wait` if the machine does not answer, for example because it
    /// boots.
    pub fn connect(socket: &Path, max_wait: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(max_wait))?;
        stream.set_write_timeout(Some(max_wait))?;
        let mut agent = Self(BufReader::new(stream));
        agent.synchronise()?;
        agent.0.get_ref().set_read_timeout(Some(ANSWER))?;
        Ok(agent)
    }

    /// Skips the answers to earlier connections.
    fn synchronise(&mut self) -> Result<()> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let command = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        // The byte 0xff makes the agent forget half a command.
        let message = [&[0xff], format!("{command}\n").as_bytes()].concat();
        self.0.get_mut().write_all(&message)?;
        loop {
            let answer = self.line()?;
            if serde_json::from_str::<Value>(&answer).is_ok_and(|it| it["return"] == id) {
                return Ok(());
            }
        }
    }

    /// Runs a program to its end.
    pub fn run(&mut self, program: &[&str], input: &str, max_wait: Duration) -> Result<Printed> {
        let started = self.call(
            "guest-exec",
            &json!({
                "path": program[0],
                "arg": program[1..],
                "input-data": BASE64.encode(input),
                "capture-output": true,
            }),
        )?;
        let deadline = Instant::now() + max_wait;
        loop {
            let status = self.call("guest-exec-status", &json!({ "pid": started["pid"] }))?;
            if status["exited"] == true {
                return Ok(Printed {
                    code: status["exitcode"].as_i64().unwrap_or(-1),
                    stdout: decoded(&status["out-data"])?,
                    stderr: decoded(&status["err-data"])?,
                });
            }
            ensure!(
                Instant::now() < deadline,
                "it did not end within {max_wait:?}"
            );
            thread::sleep(POLL);
        }
    }

    fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.0
            .get_mut()
            .write_all(format!("{message}\n").as_bytes())?;
        let answer = self.line()?;
        let mut answer: Value =
            serde_json::from_str(&answer).with_context(|| format!("not JSON: {answer}"))?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: {error}");
        }
        Ok(answer["return"].take())
    }

    /// The next line, without the byte that precedes an answer to `guest-sync-delimited`.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.0
            .read_until(b'\n', &mut line)
            .context("no answer from the guest agent")?;
        ensure!(!line.is_empty(), "QEMU closed the guest agent's socket");
        line.retain(|byte| *byte != 0xff);
        Ok(String::from_utf8_lossy(&line).trim().to_owned())
    }
}

fn decoded(data: &Value) -> Result<String> {
    let bytes = BASE64.decode(data.as_str().unwrap_or_default())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
