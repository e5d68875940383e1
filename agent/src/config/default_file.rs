//! The documented default configuration.

use super::{
    parsers::elements,
    settings::{SETTINGS, Setting},
};

const HEAD: &str = "\
# Settings of ipip-agent with their defaults. Use: ipip-agent --config FILE
# A setting's environment variable wins over this file, and its flag wins over both.
";

/// A configuration file that sets each setting to its default and documents it. A setting with an
/// empty default is a comment.
pub fn default_file() -> String {
    let settings = SETTINGS.iter().map(entry);
    HEAD.to_owned() + &settings.collect::<String>()
}

fn entry(setting: &Setting) -> String {
    let mut entry = String::from("\n");
    for line in setting.doc {
        entry.push_str(&format!("# {}\n", line.trim()));
    }
    entry.push_str(&format!("# Values: {}\n", setting.values));
    if setting.default.is_empty() {
        entry.push_str(&format!("# Default: {}\n", setting.unset));
    }
    entry.push_str(&format!("# {}, --{}\n", setting.variable(), setting.flag()));
    let key = setting.key;
    entry.push_str(&match (setting.default, setting.is_list) {
        ("", true) => format!("#{key}: []\n"),
        ("", false) => format!("#{key}:\n"),
        (default, false) => format!("{key}: {default}\n"),
        (default, true) => {
            let elements = elements(default).map(|element| format!("  - {element}\n"));
            format!("{key}:\n{}", elements.collect::<String>())
        }
    });
    entry
}
