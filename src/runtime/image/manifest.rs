//! Manifests and indexes, OCI's and Docker's: one parser for registries and archives. Pure.
//!
//! Always true: a document is an index or a manifest, never both (CVE-2021-41190), whatever its
//! sender calls it; numbers of entries and layers are bounded; every digest is one.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

use super::{digest::Digest, json, platform};

/// As the distribution specification asks of registries.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// An index may name another index, but not for ever.
pub const MAX_INDEX_DEPTH: usize = 3;
const MAX_INDEX_ENTRIES: usize = 1000;
/// As many as Docker's overlay driver stacks.
const MAX_LAYERS: usize = 127;

/// What to ask a registry for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug)]
pub struct Manifest {
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
    /// Docker's schema 1.
    Old,
}

/// `None`: says nothing about which of them it is.
fn kind(media_type: &str) -> Option<Kind> {
    match media_type.split(';').next().unwrap_or_default().trim() {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Kind::Index),
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Some(Kind::Manifest),
        "application/vnd.docker.distribution.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Some(Kind::Old),
        _ => None,
    }
}

impl Descriptor {
    pub fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?)
    }
}

/// Reads a document that others call `called` (a content type, a descriptor's media type, or empty).
pub fn parse(bytes: &[u8], called: &str) -> Result<Document, String> {
    let wire: Wire = json::read(bytes)?;
    let is_index = wire.manifests.is_some();
    let is_manifest = wire.config.is_some() || wire.layers.is_some();
    let content = match (is_index, is_manifest) {
        _ if wire.schema_version == Some(1) || wire.fs_layers.is_some() => Kind::Old,
        (true, true) => {
            return Err("it can be read as an index and as a manifest".to_owned());
        }
        (true, false) => Kind::Index,
        (false, true) => Kind::Manifest,
        (false, false) => return Err("it is neither an index nor a manifest".to_owned()),
    };
    if content == Kind::Old {
        return Err("Docker's schema 1 is not supported; push the image again".to_owned());
    }
    for (what, media_type) in [
        (
            "its mediaType",
            wire.media_type.as_deref().unwrap_or_default(),
        ),
        ("its sender", called),
    ] {
        if kind(media_type).is_some_and(|kind| kind != content) {
            let is = match content {
                Kind::Index => "an index",
                Kind::Manifest | Kind::Old => "a manifest",
            };
            let media_type = json::excerpt(media_type, 80);
            return Err(format!("it is {is}, but {what} says {media_type:?}"));
        }
    }
    if let Some(entries) = wire.manifests {
        let count = entries.len();
        return match count <= MAX_INDEX_ENTRIES {
            true => Ok(Document::Index(entries)),
            false => Err(format!(
                "the index has {count} entries, more than {MAX_INDEX_ENTRIES}"
            )),
        };
    }
    let config = wire.config.ok_or("it has no config")?;
    let layers = wire.layers.unwrap_or_default();
    check_layers(layers.len())?;
    Ok(Document::Manifest(Manifest { config, layers }))
}

pub fn check_layers(count: usize) -> Result<(), String> {
    match count <= MAX_LAYERS {
        true => Ok(()),
        false => Err(format!("it has {count} layers, more than {MAX_LAYERS}")),
    }
}

/// The entry for this machine: the plain one before one for newer processors, one that says nothing
/// last (its configuration then tells). Otherwise what there is.
pub fn choose(entries: &[Descriptor]) -> Result<&Descriptor, String> {
    let rank = |entry: &Descriptor| match &entry.platform {
        None => Some(2),
        Some(found) if !platform::is_ours(&found.os, &found.architecture) => None,
        Some(found) if platform::is_plain(&found.variant) => Some(0),
        Some(_) => Some(1),
    };
    let ranked = entries
        .iter()
        .filter_map(|entry| Some((rank(entry)?, entry)));
    // Of equals the first, of processors' levels the lowest.
    let variant = |entry: &Descriptor| entry.platform.as_ref().map(|found| found.variant.clone());
    match ranked.min_by_key(|(rank, entry)| (*rank, variant(entry))) {
        Some((_, entry)) => Ok(entry),
        None => {
            let offers: Vec<(String, String)> = entries
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .map(|found| (found.os.clone(), found.architecture.clone()))
                .collect();
            Err(json::excerpt(&platform::list(offers.iter()), 300))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

    fn descriptor(extra: &str) -> String {
        let digest = "a".repeat(64);
        format!(r#"{{"digest":"sha256:{digest}","size":1{extra}}}"#)
    }

    #[test]
    fn documents_are_one_thing() {
        let one = descriptor("");
        let layers = |count: usize| vec![one.as_str(); count].join(",");
        let manifest = |count| format!(r#"{{"config":{one},"layers":[{}]}}"#, layers(count));
        let typed = |media_type: &str| {
            format!(r#"{{"mediaType":"{media_type}","config":{one},"layers":[{one}]}}"#)
        };
        let both = format!(r#"{{"config":{one},"layers":[{one}],"manifests":[{one}]}}"#);
        let layered_index = format!(r#"{{"layers":[],"manifests":[{one}]}}"#);
        let index = format!(r#"{{"manifests":[{one}]}}"#);
        let twice = format!(r#"{{"config":{one},"layers":[],"layers":[{one}]}}"#);
        let huge_index = format!(r#"{{"manifests":[{}]}}"#, layers(MAX_INDEX_ENTRIES + 1));
        let bad_digest = index.replace("sha256:", "sha256:../../../etc/passwd#");
        let bad_size = index.replace(":1}", ":-1}");
        let ambiguous = "as an index and as a manifest";
        for (document, called, want) in [
            (manifest(MAX_LAYERS).as_str(), "", None),
            (&manifest(0), "text/plain", None),
            (&typed(MANIFEST), MANIFEST, None),
            (&index, INDEX, None),
            (
                &typed(INDEX),
                "",
                Some("it is a manifest, but its mediaType"),
            ),
            (
                &manifest(1),
                INDEX,
                Some("it is a manifest, but its sender"),
            ),
            (&index, MANIFEST, Some("it is an index, but its sender")),
            (&both, "", Some(ambiguous)),
            (&both, INDEX, Some(ambiguous)),
            (&layered_index, INDEX, Some(ambiguous)),
            (&twice, "", Some("duplicate field `layers`")),
            (
                &manifest(MAX_LAYERS + 1),
                "",
                Some("128 layers, more than 127"),
            ),
            (&huge_index, "", Some("1001 entries, more than 1000")),
            (
                &bad_digest,
                "",
                Some("is not a sha256, sha384 or sha512 digest"),
            ),
            (&bad_size, "", Some("integer `-1`")),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "", Some("schema 1")),
            (r#"{"layers":[]}"#, "", Some("no config")),
            ("{}", "", Some("neither an index nor a manifest")),
            ("[]", "", Some("expected")),
            ("nonsense", "", Some("expected")),
        ] {
            let got = parse(document.as_bytes(), called);
            match want {
                None => assert!(got.is_ok(), "{document}: {got:?}"),
                Some(want) => assert!(got.as_ref().is_err_and(|e| e.contains(want)), "{got:?}"),
            }
        }
    }

    #[test]
    fn the_entry_for_this_machine() {
        let native = platform::ours().split_once('/').unwrap().1.to_owned();
        let on = |os: &str, architecture: &str, variant: &str| {
            let platform = format!(
                r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#
            );
            serde_json::from_str::<Descriptor>(&descriptor(&platform)).unwrap()
        };
        let plain = serde_json::from_str::<Descriptor>(&descriptor("")).unwrap();
        let (ours, newer) = (on("linux", &native, ""), on("linux", &native, "v3"));
        let newest = on("linux", &native, "v4");
        let (foreign, attestation) = (on("linux", "s390x", ""), on("unknown", "unknown", ""));
        for (entries, want) in [
            (vec![&foreign, &newer, &ours], Ok(2)),
            (vec![&newest, &newer, &foreign], Ok(1)),
            (vec![&plain, &newer], Ok(1)),
            (vec![&foreign, &plain, &plain], Ok(1)),
            (vec![&foreign, &attestation], Err("linux/s390x")),
            (vec![], Err("none")),
        ] {
            let entries: Vec<Descriptor> = entries.into_iter().cloned().collect();
            let got = choose(&entries).map(|entry| {
                let mut all = entries.iter();
                all.position(|other| std::ptr::eq(other, entry)).unwrap()
            });
            assert_eq!(got, want.map_err(str::to_owned));
        }
    }
}
