//! What an image is made of, checked: its configuration and the layers it names. Pure.

use oci_spec::image::ImageConfiguration;

use super::{Error, digest::Digest, json, manifest, platform, records::Record, reference::Name};

pub const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Of environment, labels, volumes, ports and words of a command, each.
const MOST_ENTRIES: usize = 4096;

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
    /// Checks `config` (the blob) against the number of layers and this machine.
    pub fn new(what: &str, digest: String, config: Vec<u8>, layers: usize) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed {
            what: what.to_owned(),
            reason,
        };
        let wrong = |reason| malformed(format!("its configuration: {reason}"));
        let config = String::from_utf8(config).map_err(|_| wrong("not UTF-8".to_owned()))?;
        let parsed = parse(&config).map_err(wrong)?;
        manifest::check_layers(layers).map_err(malformed)?;
        let (os, architecture) = (parsed.os().to_string(), parsed.architecture().to_string());
        if !platform::is_ours(&os, &architecture) {
            return Err(Error::NoPlatform {
                reference: what.to_owned(),
                wanted: platform::ours(),
                available: json::excerpt(&format!("{os}/{architecture}"), 100),
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
                "layer {:?} is not named by a sha256 digest",
                json::excerpt(bad, 100)
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
        let id = Digest::of(self.config.as_bytes()).to_string();
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

/// Reads a configuration; the reason says what is wrong with it.
pub fn parse(config: &str) -> Result<ImageConfiguration, String> {
    if config.len() as u64 > MAX_CONFIG_BYTES {
        return Err(format!("it has more than {MAX_CONFIG_BYTES} bytes"));
    }
    let parsed: ImageConfiguration = json::read(config.as_bytes())?;
    let Some(settings) = parsed.config() else {
        return Ok(parsed);
    };
    let number = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
    for (field, count) in [
        ("Env", number(settings.env())),
        ("Cmd", number(settings.cmd())),
        ("Entrypoint", number(settings.entrypoint())),
        ("Volumes", number(settings.volumes())),
        ("ExposedPorts", number(settings.exposed_ports())),
        (
            "Labels",
            settings.labels().as_ref().map_or(0, |labels| labels.len()),
        ),
    ] {
        if count > MOST_ENTRIES {
            return Err(format!(
                "{field} has {count} entries, more than {MOST_ENTRIES}"
            ));
        }
    }
    Ok(parsed)
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
        assert!(Content::new("x", String::new(), config(&native, &good).into(), 1).is_ok());
        let many = |field: &str, entry: &str| {
            let settings = format!(r#""config":{{"{field}":{entry}}},"os""#);
            config(&native, &good).replace(r#""os""#, &settings)
        };
        let list = format!("[{}\"a=b\"]", "\"a=b\",".repeat(MOST_ENTRIES));
        let map: Vec<String> = (0..=MOST_ENTRIES)
            .map(|n| format!("\"{n}\":\"\""))
            .collect();
        let map = format!("{{{}}}", map.join(","));
        let million = format!("[{}\"\"]", "\"\",".repeat(1_000_000));
        let big = format!("[\"{}\"]", "x".repeat(5 << 20));
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
            ("[".repeat(100_000), 1, "nested deeper than 32"),
            (many("Env", &list), 1, "Env has 4097 entries"),
            (many("Labels", &map), 1, "Labels has 4097 entries"),
            (many("Env", &million), 1, "more than 65536 values"),
            (many("Env", &big), 1, "more than 4194304 bytes"),
        ] {
            let error = Content::new("x", String::new(), config.into(), layers)
                .unwrap_err()
                .to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
