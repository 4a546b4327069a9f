//! What registries and archives send: manifests, configurations, layers.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use vetch::runtime::{files, image::fuzzing};

pub fn manifest(data: &[u8]) {
    fuzzing::manifest(data);
    if let Ok(text) = std::str::from_utf8(data) {
        fuzzing::configuration(text);
    }
}

/// Whatever a layer holds, it stays within its folder, and what it left can be taken away.
pub fn layer(data: &[u8]) {
    let outer = tempfile::tempdir().expect("a folder for the test");
    let folder = outer.path().join("outer/layer");
    fs::create_dir_all(&folder).expect("a folder for the layer");
    let before = picture(outer.path(), &folder);
    fuzzing::layer(data, &folder);
    assert_eq!(picture(outer.path(), &folder), before, "it left its folder");
    files::remove_tree(&folder).expect("what was unpacked can be removed");
    assert!(!folder.exists());
}

/// All but what is in the folder itself.
fn picture(outer: &Path, folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut left = vec![outer.to_owned()];
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(&path).expect("a folder").flatten() {
            let meta = entry.metadata().expect("an entry");
            found.push((entry.path().display().to_string(), meta.ino()));
            if meta.is_dir() && entry.path() != folder {
                left.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
