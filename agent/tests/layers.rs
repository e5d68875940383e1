//! The folders of `agent/src` depend on each other in one direction, as the documentation of the library says.

use std::{collections::BTreeSet, fs, path::Path};

/// From the bottom to the top. A folder may use folders of earlier rows.
const LAYERS: &[&[&str]] = &[
    &["other_networks", "paths", "probe_key"],
    &["config"],
    &["nodes", "cni_install"],
    &["host"],
    &["reconcile"],
    &["daemon"],
    &["commands"],
];

#[test]
fn each_folder_uses_only_lower_folders() {
    let mut checked = BTreeSet::new();
    check(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        None,
        &mut checked,
    );
    let expected: BTreeSet<String> = LAYERS
        .iter()
        .flat_map(|row| row.iter().map(ToString::to_string))
        .collect();
    assert_eq!(checked, expected, "a folder is missing in LAYERS or in src");
}

/// Checks every file in `folder`. `module` is the top-level module that the folder belongs to.
fn check(folder: &Path, module: Option<&str>, checked: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let module = module.unwrap_or(stem);
        if path.is_dir() {
            checked.insert(module.to_owned());
            check(&path, Some(module), checked);
            continue;
        }
        for used in used_modules(&fs::read_to_string(&path).unwrap()) {
            assert!(
                used == module || layer(&used) < layer(module),
                "{} must not use the module {used}",
                path.display()
            );
        }
    }
}

/// The row of a module. Files beside `lib.rs` are below all folders.
fn layer(module: &str) -> usize {
    let row = LAYERS.iter().position(|row| row.contains(&module));
    row.map_or(0, |row| row + 1)
}

/// The top-level modules in `crate::a::b` and in `use crate::{a::b, c::{d, e}}`.
fn used_modules(text: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for after in text.split("crate::").skip(1) {
        let Some(list) = after.strip_prefix('{') else {
            modules.insert(first_word(after));
            continue;
        };
        let mut depth = 0;
        let mut starts_item = true;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts_item = true,
                c if starts_item && !c.is_whitespace() => {
                    modules.insert(first_word(&list[at..]));
                    starts_item = false;
                }
                _ => {}
            }
        }
    }
    modules
}

fn first_word(text: &str) -> String {
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    text.chars().take_while(is_word).collect()
}
