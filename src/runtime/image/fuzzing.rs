//! The parsers of images, for fuzzers: each takes what anybody may have made, and says whether it
//! was accepted.

use std::path::Path;

use super::{content, manifest, unpack};

/// A manifest or an index, and the choice among an index' entries.
pub fn manifest(bytes: &[u8]) -> bool {
    match manifest::parse(bytes, "") {
        Ok(manifest::Document::Index(entries)) => manifest::choose(&entries).is_ok(),
        Ok(manifest::Document::Manifest(found)) => {
            // What a manifest names becomes a request and the name of a file.
            let digests = found.layers.iter().chain([&found.config]);
            for digest in digests.map(|descriptor| descriptor.digest.to_string()) {
                assert!(content::is_sha256(&digest) || digest.starts_with("sha512:"));
                assert!(!digest.contains('/'));
            }
            true
        }
        Err(_) => false,
    }
}

/// An image's configuration.
pub fn configuration(text: &str) -> bool {
    content::parse(text).is_ok()
}

/// A layer's tar stream into an empty folder.
pub fn layer(bytes: &[u8], folder: &Path) -> bool {
    let limits = unpack::Limits {
        bytes: 1 << 20,
        files: 500,
        steps: 10_000,
    };
    unpack::unpack(bytes, folder, limits).is_ok()
}
