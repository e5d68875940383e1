//! `ipipctl completions` and `ipipctl man`: files made from the definition of the command line.

use crate::Cli;
use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use std::{fs, path::Path};

/// The completion script for `shell`.
pub fn completions(shell: Shell) -> Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ipipctl", &mut script);
    String::from_utf8(script).context("the completion script is not UTF-8")
}

/// Writes `ipipctl.1` and a man page for each verb into `folder`.
pub fn man_pages(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .with_context(|| format!("cannot write man pages into {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn verbs() -> Vec<String> {
        let cli = Cli::command();
        let shown = cli.get_subcommands().filter(|verb| !verb.is_hide_set());
        shown.map(|verb| verb.get_name().to_owned()).collect()
    }

    #[test]
    fn completions_of_each_shell_contain_every_verb() {
        assert!(verbs().contains(&"kubeadm-config".to_owned()));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell).unwrap();
            for verb in verbs() {
                assert!(script.contains(&verb), "{shell}: {verb}");
            }
        }
    }

    #[test]
    fn the_man_page_names_every_verb_and_each_verb_has_a_page_that_renders() {
        let folder = tempfile::tempdir().unwrap();
        man_pages(folder.path()).unwrap();
        let main = fs::read_to_string(folder.path().join("ipipctl.1")).unwrap();
        for verb in verbs() {
            // roff escapes hyphens.
            assert!(main.contains(&verb.replace('-', "\\-")), "{verb}");
            let page = folder.path().join(format!("ipipctl-{verb}.1"));
            let text = fs::read_to_string(&page).unwrap();
            assert!(text.contains(".SH NAME"), "{verb}");
            render(&page);
        }
        render(&folder.path().join("ipipctl.1"));
    }

    /// Renders a page with `man`, if the machine has it.
    fn render(page: &Path) {
        let Ok(output) = Command::new("man")
            .env("MANWIDTH", "120")
            .arg("--warnings")
            .arg("-l")
            .arg(page)
            .output()
        else {
            return;
        };
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && warnings.is_empty(),
            "{}: {warnings}",
            page.display()
        );
    }
}
