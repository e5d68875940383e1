//! The documents are correct: links lead to a file and a heading, named files exist, versions match the code.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Folders that hold no documents of ours.
const SKIPPED: [&str; 2] = [".git", "target"];

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Markdown file below `folder`, without following symbolic links.
fn documents_in(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace") {
        let entry = entry.expect("an entry");
        let (path, kind) = (entry.path(), entry.file_type().expect("a file type"));
        if kind.is_dir() && !SKIPPED.iter().any(|name| entry.file_name() == *name) {
            documents_in(&path, found);
        }
        if kind.is_file() && path.extension().is_some_and(|it| it == "md") {
            found.push(path);
        }
    }
}

fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    documents_in(workspace(), &mut found);
    assert!(found.len() > 20, "only {found:?}");
    found
}

fn events(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// The anchors that GitHub gives to a document's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut heading) = (BTreeSet::new(), None);
    for event in events(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let anchor = slug(&heading.take().unwrap_or_default());
                // GitHub numbers the second and later headings of the same text.
                let again = (1..).map(|number| format!("{anchor}-{number}"));
                let free = std::iter::once(anchor.clone())
                    .chain(again)
                    .find(|it| !anchors.contains(it));
                anchors.extend(free);
            }
            Event::Text(part) | Event::Code(part) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&part);
                }
            }
            _ => {}
        }
    }
    anchors
}

fn slug(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The problem with a link of the document; `None` if it leads to a file and a heading.
fn broken(document: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() {
        document.to_owned()
    } else {
        document.parent()?.join(path)
    };
    if !file.exists() {
        return Some(format!("{target}: no such file"));
    }
    let is_missing = !anchor.is_empty() && !anchors(&read(&file)).contains(anchor);
    is_missing.then(|| format!("{target}: no such heading"))
}

/// Whether `code` is written like the path of a file or folder of this repository.
fn is_path(code: &str) -> bool {
    let plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '_' | '-' | '.' | '/');
    let Some((first, _)) = code.split_once('/') else {
        return false;
    };
    let is_ours = first == "src" || (!first.is_empty() && workspace().join(first).is_dir());
    code.chars().all(plain) && is_ours && !SKIPPED.contains(&first)
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut wrong = Vec::new();
    for document in documents() {
        for event in events(&read(&document)) {
            if let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event {
                let problem = broken(&document, &dest_url);
                wrong.extend(problem.map(|it| format!("{}: {it}", document.display())));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_that_a_document_names_exists() {
    let mut wrong = Vec::new();
    for document in documents() {
        let folder = document.parent().expect("a folder");
        for event in events(&read(&document)) {
            if let Event::Code(code) = event
                && is_path(&code)
                && !workspace().join(&*code).exists()
                && !folder.join(&*code).exists()
            {
                wrong.push(format!("{}: {code}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_has_a_readme() {
    let folders = fs::read_dir(workspace()).expect("the workspace");
    for folder in folders.map(|entry| entry.expect("an entry").path()) {
        let is_crate = folder.join("Cargo.toml").is_file();
        assert!(
            !is_crate || folder.join("README.md").is_file(),
            "{} has no README.md",
            folder.display()
        );
    }
}

#[test]
fn every_decision_is_listed_and_has_a_date_context_and_consequences() {
    let folder = workspace().join("docs/decisions");
    let index = read(&folder.join("README.md"));
    for entry in fs::read_dir(&folder).expect("the decisions") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        if name == "README.md" {
            continue;
        }
        let text = read(&folder.join(&*name));
        assert!(index.contains(&format!("({name})")), "{name} is not listed");
        for part in ["Date: 20", "## Context", "## Decision", "## Consequences"] {
            assert!(text.contains(part), "{name} lacks `{part}`");
        }
    }
}

#[test]
fn the_changelog_has_each_kind_once_a_version_and_the_abi_version_of_the_code() {
    let changelog = read(&workspace().join("CHANGELOG.md"));
    for version in changelog.split("\n## ").skip(1) {
        let mut kinds = BTreeSet::new();
        for kind in version.lines().filter_map(|it| it.strip_prefix("### ")) {
            assert!(kinds.insert(kind), "`{kind}` is there twice");
        }
    }
    let code = read(&workspace().join("abi/src/lib.rs"));
    let (_, version) = code
        .split_once("ABI_VERSION: u32 = ")
        .expect("the constant");
    let (version, _) = version.split_once(';').expect("its end");
    let line = format!("ABI version of the pinned maps: {version}.");
    assert!(changelog.contains(&line), "CHANGELOG.md lacks `{line}`");
}
