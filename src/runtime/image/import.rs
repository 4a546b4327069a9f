//! Images from files: docker-archive (`docker save`) and OCI layout, as a folder or a tar.
//!
//! `archive.rs` gives files by name; `Content`, `manifest.rs` and `Layers` then check the same things
//! as for a pull.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    Error, Progress,
    archive::Archive,
    content::{Content, MAX_CONFIG_BYTES},
    json,
    layers::{Layers, Pins},
    manifest::{self, Descriptor, Document, MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES, Manifest},
    platform,
    reference::Name,
};

/// More images in one archive are somebody's joke.
const MAX_IMAGES: usize = 1000;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd and others put the full name here and only the tag into the standard annotation.
const FULL_NAME: &str = "io.containerd.image.name";

/// An image found in an archive, with the names it has there.
#[derive(Debug)]
pub struct Imported {
    pub names: Vec<Name>,
    pub content: Content,
    /// Its layers stay while this is held.
    pub _pins: Pins,
}

/// Brings every image of the archive that is for this machine onto disk. Blocking.
pub fn import(
    layers: &Arc<Layers>,
    path: &Path,
    scratch: &Path,
    progress: Option<&Progress>,
) -> Result<Vec<Imported>, Error> {
    let import = Import {
        archive: Archive::open(path, scratch)?,
        layers,
        progress,
    };
    // Newer `docker save` writes both; the layout then carries the digests.
    if import.archive.has("oci-layout") && import.archive.has("index.json") {
        return import.layout();
    }
    if import.archive.has("manifest.json") {
        return import.docker();
    }
    Err(import.archive.malformed(
        "neither a docker-archive (manifest.json) nor an OCI layout (oci-layout, index.json)",
    ))
}

struct Import<'a> {
    archive: Archive,
    layers: &'a Arc<Layers>,
    progress: Option<&'a Progress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Import<'_> {
    fn docker(&self) -> Result<Vec<Imported>, Error> {
        let images: Vec<DockerImage> = self.json("manifest.json")?;
        self.check_number(images.len())?;
        let mut imported = Vec::new();
        for image in images {
            let config = self.archive.read(&image.config, MAX_CONFIG_BYTES)?;
            let (what, count) = (self.archive.what(), image.layers.len());
            let content = Content::new(what, String::new(), config, count)?;
            let pins = self.layers.pin(&content.diff_ids);
            let size = self.make(&content, &image.layers)?;
            imported.push(Imported {
                names: names(image.repo_tags.unwrap_or_default())?,
                content: content.with_size(size),
                _pins: pins,
            });
        }
        Ok(imported)
    }

    fn layout(&self) -> Result<Vec<Imported>, Error> {
        let docker_names = self.docker_names();
        let index = self.archive.read("index.json", MAX_MANIFEST_BYTES)?;
        let index = match manifest::parse(&index, "") {
            Ok(Document::Index(entries)) => entries,
            Ok(Document::Manifest(_)) => {
                return Err(self.archive.malformed("index.json: it is a manifest"));
            }
            Err(reason) => return Err(self.archive.malformed(format!("index.json: {reason}"))),
        };
        self.check_number(index.len())?;
        let mut imported = Vec::new();
        for entry in &index {
            let manifest = self.manifest(entry)?;
            let of_docker = docker_names.get(manifest.config.digest.parts().1);
            let named = match of_docker {
                Some(names) => names.clone(),
                None => [FULL_NAME, REF_NAME]
                    .iter()
                    .filter_map(|key| entry.annotation(key))
                    .take(1)
                    .map(str::to_owned)
                    .collect(),
            };
            let config = self.blob(&manifest.config, MAX_CONFIG_BYTES)?;
            let digest = entry.digest.to_string();
            let layers: Vec<String> = manifest.layers.iter().map(path).collect();
            let content = Content::new(self.archive.what(), digest, config, layers.len())?;
            let pins = self.layers.pin(&content.diff_ids);
            let size = self.make(&content, &layers)?;
            imported.push(Imported {
                names: names(named)?,
                content: content.with_size(size),
                _pins: pins,
            });
        }
        Ok(imported)
    }

    /// Full names that a `manifest.json` beside the layout gives, by configuration digest: the
    /// layout's own annotation often has the tag alone.
    fn docker_names(&self) -> BTreeMap<String, Vec<String>> {
        let images: Vec<DockerImage> = self.json("manifest.json").unwrap_or_default();
        images
            .into_iter()
            .filter_map(|image| {
                let digest = Path::new(&image.config).file_stem()?.to_str()?.to_owned();
                Some((digest, image.repo_tags?))
            })
            .collect()
    }

    /// The manifest for this machine that an index's entry leads to.
    fn manifest(&self, entry: &Descriptor) -> Result<Manifest, Error> {
        let mut entry = entry.clone();
        for _ in 0..=MAX_INDEX_DEPTH {
            let bytes = self.blob(&entry, MAX_MANIFEST_BYTES)?;
            let document = manifest::parse(&bytes, &entry.media_type);
            let wrong = |reason| {
                let reason = format!("blob {}: {reason}", entry.digest);
                self.archive.malformed(reason)
            };
            let entries = match document.map_err(wrong)? {
                Document::Manifest(manifest) => return Ok(manifest),
                Document::Index(entries) => entries,
            };
            entry = match manifest::choose(&entries) {
                Ok(entry) => entry.clone(),
                Err(available) => {
                    return Err(Error::NoPlatform {
                        reference: self.archive.what().to_owned(),
                        wanted: platform::ours(),
                        available,
                    });
                }
            };
        }
        let reason = "an index that names an index that names an index, too deep";
        Err(self.archive.malformed(reason))
    }

    /// Makes the layers of the files; their size.
    fn make(&self, content: &Content, files: &[String]) -> Result<u64, Error> {
        let sizes = files.iter().map(|name| Ok(self.archive.content(name)?.1));
        let sizes: Vec<u64> = sizes.collect::<Result<_, Error>>()?;
        let total = sizes.iter().copied().fold(0, u64::saturating_add);
        let mut done = 0;
        for ((name, size), diff_id) in files.iter().zip(&sizes).zip(&content.diff_ids) {
            let guard = tokio::runtime::Handle::current().block_on(self.layers.lock(diff_id));
            if !self.layers.has(diff_id) {
                let (file, _): (File, u64) = self.archive.content(name)?;
                self.layers.make(diff_id, file)?;
            }
            drop(guard);
            done += size;
            if let Some(progress) = self.progress {
                progress(done, total);
            }
        }
        self.layers.complete(&content.diff_ids)?;
        Ok(total)
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let bytes = self.archive.read(name, MAX_MANIFEST_BYTES)?;
        json::read(&bytes).map_err(|reason| self.archive.malformed(format!("{name}: {reason}")))
    }

    /// A small blob of a layout, checked.
    fn blob(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.archive.read(&path(blob), limit)?;
        match blob.digest.matches(&bytes) {
            true => Ok(bytes),
            false => Err(self
                .archive
                .malformed(format!("blob {} has other content", blob.digest))),
        }
    }

    fn check_number(&self, images: usize) -> Result<(), Error> {
        match images <= MAX_IMAGES {
            true => Ok(()),
            false => Err(self
                .archive
                .malformed(format!("it has {images} images, more than {MAX_IMAGES}"))),
        }
    }
}

/// A blob's name in a layout.
fn path(blob: &Descriptor) -> String {
    let (algorithm, digits) = blob.digest.parts();
    format!("blobs/{algorithm}/{digits}")
}

fn names(texts: Vec<String>) -> Result<Vec<Name>, Error> {
    texts.iter().map(|text| Name::parse(text)).collect()
}
