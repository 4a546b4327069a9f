//! Who may use whom: the arrows of docs/architecture.md, read off the `use crate::` lines.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What each part of `src` may use of the others. `cli` may use everything.
const ALLOWED: [(&str, &[&str]); 29] = [
    ("accepting", &[]),
    ("addresses", &[]),
    ("allocator", &["program_text"]),
    ("announcing", &["addresses", "events", "informer", "repair"]),
    ("any_certificate", &[]),
    (
        "apiserver",
        &[
            "addresses",
            "allocator",
            "any_certificate",
            "bootstrap_token",
            "cel",
            "listener",
            "node_identity",
            "store",
            "pki",
        ],
    ),
    ("bootstrap_token", &[]),
    ("cel", &[]),
    (
        "controllers",
        &[
            "addresses",
            "bootstrap_token",
            "events",
            "informer",
            "node_identity",
            "placement",
        ],
    ),
    ("dns", &["accepting", "addresses", "informer"]),
    ("events", &[]),
    ("informer", &[]),
    (
        "joining",
        &["addresses", "bootstrap_token", "node_identity", "pki"],
    ),
    ("lab", &["addresses", "pki", "runtime"]),
    ("listener", &["accepting"]),
    ("loopback", &["accepting", "addresses", "listener"]),
    (
        "kubelet",
        &[
            "accepting",
            "addresses",
            "any_certificate",
            "network_policy",
            "own_ports",
            "repair",
            "runtime",
            "served",
            "events",
            "listener",
            "loopback",
            "informer",
            "pki",
            "placement",
        ],
    ),
    (
        "network_policy",
        &["addresses", "events", "informer", "repair"],
    ),
    ("node_identity", &[]),
    ("own_ports", &["addresses"]),
    ("pki", &[]),
    ("placement", &[]),
    (
        "proxy",
        &[
            "accepting",
            "addresses",
            "events",
            "informer",
            "listener",
            "loopback",
            "own_ports",
            "repair",
            "served",
        ],
    ),
    ("program_text", &[]),
    ("repair", &["addresses"]),
    ("runtime", &["addresses", "any_certificate"]),
    ("scheduler", &["events", "informer", "placement"]),
    ("served", &["informer"]),
    ("store", &[]),
];

/// What every part may use; these use nothing of ours but each other.
const FOR_ALL: [&str; 10] = [
    "backoff",
    "causes",
    "deletion",
    "exposition",
    "format",
    "hex",
    "logging",
    "queue",
    "supervision",
    "ticks",
];

/// Which of our crates each part may use.
const CRATES: [(&str, &[&str]); 14] = [
    ("announcing", &["netns"]),
    ("apiserver", &["proto"]),
    ("cel", &["proto"]),
    ("controllers", &["proto"]),
    ("kubelet", &["netns", "cgroups", "proto"]),
    ("lab", &["netns", "cgroups"]),
    ("runtime", &["netns", "cgroups"]),
    ("network_policy", &["netns"]),
    ("own_ports", &["netns"]),
    ("placement", &["proto"]),
    ("proxy", &["netns"]),
    ("repair", &["netns"]),
    ("scheduler", &["proto"]),
    ("cli", &["netns", "cgroups", "proto"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The parts named after `crate::`, also inside braces.
fn used(text: &str) -> BTreeSet<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => {
                names.insert(word(rest));
            }
            Some(list) => {
                let mut depth = 0;
                let mut item = true;
                for (at, character) in list.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => item = true,
                        c if item && !c.is_whitespace() => {
                            names.insert(word(&list[at..]));
                            item = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

#[test]
fn arrows_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let parts: BTreeSet<&str> = ALLOWED
        .iter()
        .map(|(part, _)| *part)
        .chain(["cli"])
        .chain(FOR_ALL)
        .collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let part = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        let text = fs::read_to_string(&file).unwrap();
        let own = ALLOWED.iter().find(|(name, _)| *name == part);
        let allowed = match own {
            Some((_, allowed)) => Some(allowed.iter().chain(&FOR_ALL).copied().collect()),
            None => FOR_ALL.contains(&part).then(|| FOR_ALL.to_vec()),
        };
        if let Some(allowed) = allowed {
            for name in used(&text) {
                if parts.contains(name.as_str())
                    && name != part
                    && !allowed.contains(&name.as_str())
                {
                    wrong.push(format!("{} uses {name}", relative.display()));
                }
            }
        }
        let crates = CRATES
            .iter()
            .find(|(name, _)| *name == part)
            .map_or(&[][..], |(_, crates)| crates);
        for name in ["netns", "cgroups", "proto"] {
            let uses = [
                format!("use {name}::"),
                format!(" {name}::"),
                format!("({name}::"),
            ]
            .iter()
            .any(|form| text.contains(form));
            let local =
                text.contains(&format!("mod {name}")) || text.contains(&format!("super::{name}"));
            if uses && !local && !crates.contains(&name) && parts.contains(part) {
                wrong.push(format!("{} uses the crate {name}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Trees that pods and images make are removed without recursion, hence by `runtime/files` only.
#[test]
fn nothing_recurses_over_trees_of_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let is_test =
        |file: &PathBuf| file.ends_with("tests.rs") || file.iter().any(|part| part == "tests");
    files.retain(|file| !is_test(file));
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for call in ["remove_dir_all", "WalkDir"] {
            assert!(!product.contains(call), "{call} in {}", file.display());
        }
    }
}

#[test]
fn the_reader_sees_what_is_used() {
    let names = used("use crate::{store::{self, Op}, pki};\nuse crate::informer::Key;");
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["informer", "pki", "store"]
    );
}

/// Who deletes an object says which one was judged: see `src/deletion.rs`.
#[test]
fn only_what_was_judged_is_deleted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for part in ["controllers", "scheduler"] {
        let mut files = Vec::new();
        sources(&root.join(part), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for plain in [
                "&DeleteParams::default()",
                "&DeleteParams::background()",
                "&DeleteParams::foreground()",
                "Preconditions {",
            ] {
                if text.contains(plain) {
                    let path = file.strip_prefix(&root).unwrap();
                    wrong.push(format!("{} has {plain}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
