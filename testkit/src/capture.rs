//! What `tcpdump` sees on an interface.

use crate::{
    host::Host,
    trash::{Item, Trash},
};
use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    trash: Trash,
}

impl Capture {
    /// Starts to capture on `ifname` of `host` what matches `filter`; returns when it sees packets.
    /// `options` are further ones of tcpdump, as `-v`.
    pub fn start(
        host: &Host,
        trash: &Trash,
        ifname: &str,
        options: &str,
        filter: &str,
    ) -> Result<Self> {
        let mut child = host
            .enter(|| {
                Command::new("tcpdump")
                    .args(["-n", "-t", "-l", "--immediate-mode", "-i", ifname])
                    .args(options.split_whitespace())
                    .arg(filter)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
            })?
            .context("cannot start tcpdump")?;
        trash.add(Item::Process(pid(&child)));
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("tcpdump without output");
        };
        let mut said = String::new();
        let mut stderr = BufReader::new(stderr);
        // It says so when its socket is open.
        while !said.contains("istening on") {
            if stderr.read_line(&mut said)? == 0 {
                bail!("tcpdump on {ifname} of {} ended: {said}", host.name());
            }
        }
        let lines = Arc::new(Mutex::new(Vec::new()));
        let shared = lines.clone();
        let reader = thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            for line in lines.filter(|line| !line.is_empty()) {
                locked(&shared).push(line);
            }
            // Until here its statistics have a place to go.
            drop(stderr);
        });
        Ok(Self {
            child,
            lines,
            reader: Some(reader),
            trash: trash.clone(),
        })
    }

    /// Waits until a line satisfies `wanted`, for two seconds at most; returns that line.
    pub fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            if let Some(line) = locked(&self.lines).iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it and returns its lines.
    pub fn stop(mut self) -> Result<Vec<String>> {
        // What has just been sent is still on its way through the capture socket.
        thread::sleep(Duration::from_millis(100));
        self.end();
        Ok(std::mem::take(&mut *locked(&self.lines)))
    }

    fn end(&mut self) {
        let Some(reader) = self.reader.take() else {
            return;
        };
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = kill(pid(&self.child), Signal::SIGTERM);
            let _ = self.child.wait();
        }
        self.trash.forget(&Item::Process(pid(&self.child)));
        let _ = reader.join();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

fn locked(lines: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}
