//! What an image is made of, checked: its configuration and the layers it names. Pure.

use oci_spec::image::ImageConfiguration;
use sha2::{Digest, Sha256};

use super::{Error, layers::hex, platform, records::Record, reference::Name};

/// Image content that has been read and makes sense.
#[derive(Clone, Debug)]
pub struct Content {
    /// Digest of the manifest or index that the name stood for; empty when there was none.
    pub digest: String,
    pub config: String,
    pub diff_ids: Vec<String>,
    size_bytes: u64,
}

impl Content {
    /// Checks `config` (the blob's text) against the number of layers and this machine.
    pub fn new(what: &str, digest: String, config: String, layers: usize) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed {
            what: what.to_owned(),
            reason,
        };
        let parsed =
            parse(&config).map_err(|error| malformed(format!("its configuration: {error}")))?;
        let (os, architecture) = (parsed.os().to_string(), parsed.architecture().to_string());
        if !platform::is_ours(&os, &architecture) {
            return Err(Error::NoPlatform {
                reference: what.to_owned(),
                wanted: platform::ours(),
                available: format!("{os}/{architecture}"),
            });
        }
        let diff_ids = parsed.rootfs().diff_ids().clone();
        if diff_ids.len() != layers {
            return Err(malformed(format!(
                "{layers} layers, but its configuration names {}",
                diff_ids.len()
            )));
        }
        if let Some(bad) = diff_ids.iter().find(|id| !is_sha256(id)) {
            return Err(malformed(format!(
                "layer {bad:?} is not named by a sha256 digest"
            )));
        }
        Ok(Self {
            digest,
            config,
            diff_ids,
            size_bytes: 0,
        })
    }

    pub fn with_size(self, size_bytes: u64) -> Self {
        Self { size_bytes, ..self }
    }

    /// The record under `name` (none: an image without a name).
    pub fn record(self, name: Option<&Name>) -> Record {
        let id = format!("sha256:{}", hex(&Sha256::digest(self.config.as_bytes())));
        let digests = match name {
            Some(name) if !self.digest.is_empty() => vec![name.with_digest(&self.digest)],
            _ => Vec::new(),
        };
        Record {
            id,
            names: name.and_then(Name::tagged).into_iter().collect(),
            digests,
            size_bytes: self.size_bytes,
            config: self.config,
            diff_ids: self.diff_ids,
        }
    }
}

pub fn parse(config: &str) -> Result<ImageConfiguration, serde_json::Error> {
    serde_json::from_str(config)
}

/// `sha256:` and 64 lower-case hex digits; such a text is safe as a file name.
pub fn is_sha256(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(architecture: &str, diff_id: &str) -> String {
        format!(
            r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        )
    }

    #[test]
    fn configurations_are_checked() {
        let good = format!("sha256:{}", "a".repeat(64));
        let native = platform::ours().split_once('/').unwrap().1.to_owned();
        assert!(Content::new("x", String::new(), config(&native, &good), 1).is_ok());
        for (config, layers, want) in [
            (config("s390x", &good), 1, "it has linux/s390x"),
            (
                config(&native, "sha256:../../etc"),
                1,
                "is not named by a sha256 digest",
            ),
            (
                config(&native, &good),
                2,
                "2 layers, but its configuration names 1",
            ),
            ("{}".to_owned(), 1, "its configuration"),
        ] {
            let error = Content::new("x", String::new(), config, layers)
                .unwrap_err()
                .to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
