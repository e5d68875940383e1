//! Cases as text files, so that a failing packet can become a test.

use crate::generate::Case;
use anyhow::{Context, Result, bail};
use ipip_abi::Program;
use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// Where cases are kept that failed once, unless `IPIP_HOSTILE_STORED` names another folder: the sources are not on
/// every machine that runs the tests.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/stored");

impl Case {
    /// The case as text: one `name value` per line, the frame in hexadecimal.
    pub fn to_text(&self) -> String {
        let mut text = format!("program {}\n", self.program);
        if self.gso_size != 0 {
            writeln!(text, "gso_size {}", self.gso_size).expect("a string");
        }
        if self.foreign_ipip {
            text.push_str("foreign_ipip\n");
        }
        text.push_str("frame ");
        for byte in &self.frame {
            write!(text, "{byte:02x}").expect("a string");
        }
        text.push('\n');
        text
    }

    /// Reads what [`to_text`](Self::to_text) writes. Lines that begin with `#` say what the case is.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut case = Self {
            program: Program::FromUplink,
            frame: Vec::new(),
            gso_size: 0,
            foreign_ipip: false,
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("program", name) => {
                    case.program = Program::by_name(name).context("no such program")?;
                }
                ("gso_size", size) => case.gso_size = size.parse()?,
                ("foreign_ipip", _) => case.foreign_ipip = true,
                ("frame", hex) => case.frame = bytes(hex)?,
                (name, _) => bail!("`{name}` is not a field of a case"),
            }
        }
        Ok(case)
    }
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let pair = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    hex.as_bytes().chunks(2).map(pair).collect()
}

/// Writes cases into a file of `folder`; returns the file.
pub fn store(cases: &[Case], folder: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.txt"));
    fs::write(&path, to_text(cases))?;
    Ok(path)
}

/// The cases as text, each a block of lines.
pub fn to_text(cases: &[Case]) -> String {
    let texts: Vec<String> = cases.iter().map(Case::to_text).collect();
    texts.join("\n")
}

/// All stored cases with the names of their files: a packet each, or the packets of a sequence.
pub fn all() -> Result<Vec<(String, Vec<Case>)>> {
    let mut cases = Vec::new();
    let folder = env::var("IPIP_HOSTILE_STORED").unwrap_or_else(|_| FOLDER.into());
    for entry in fs::read_dir(&folder).context(folder)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let of_file = text.split("\n\n").map(Case::from_text);
        let of_file: Result<Vec<Case>> = of_file.collect();
        cases.push((
            path.file_name().context("a name")?.display().to_string(),
            of_file.with_context(|| format!("{}", path.display()))?,
        ));
    }
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(cases)
}
