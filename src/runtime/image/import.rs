//! Images from files: docker-archive (`docker save`) and OCI layout, as a folder or a tar.
//!
//! A tar is first spread into a scratch folder beside the images, so that the layers can be read
//! in any order; `Content` and `Layers` then check the same things as for a pull.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    Error, Progress,
    content::{Content, is_sha256},
    layers::{Layers, decompress, hex},
    platform,
    reference::Name,
};

const MAX_JSON_BYTES: u64 = 16 << 20;
const MAX_INDEX_DEPTH: usize = 3;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd and others put the full name here and only the tag into the standard annotation.
const FULL_NAME: &str = "io.containerd.image.name";

/// An image found in an archive, with the names it has there.
#[derive(Debug)]
pub struct Imported {
    pub names: Vec<Name>,
    pub content: Content,
}

/// Brings every image of the archive that is for this machine onto disk. Blocking.
pub fn import(
    layers: &Arc<Layers>,
    path: &Path,
    scratch: &Path,
    progress: Option<&Progress>,
) -> Result<Vec<Imported>, Error> {
    if path.is_dir() {
        return Archive {
            what: path,
            dir: path.to_owned(),
        }
        .read(layers, progress);
    }
    let spread = tempfile::Builder::new()
        .prefix("import.")
        .tempdir_in(scratch)
        .map_err(|source| Error::Io {
            action: "create a folder in",
            path: scratch.to_owned(),
            source,
        })?;
    spread_tar(path, spread.path())?;
    Archive {
        what: path,
        dir: spread.path().to_owned(),
    }
    .read(layers, progress)
}

fn spread_tar(path: &Path, into: &Path) -> Result<(), Error> {
    let io = |action, source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(|source| io("open", source))?;
    let stream = decompress(file).map_err(|source| io("read", source))?;
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries().map_err(|source| io("read", source))? {
        let mut entry = entry.map_err(|source| not_an_archive(path, &source.to_string()))?;
        let kind = entry.header().entry_type();
        // Old archives link layers that several images share; nothing else has a place in one.
        if kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link() {
            entry
                .unpack_in(into)
                .map_err(|source| io("unpack", source))?;
        }
    }
    Ok(())
}

fn not_an_archive(path: &Path, reason: &str) -> Error {
    Error::Malformed {
        what: path.display().to_string(),
        reason: reason.to_owned(),
    }
}

struct Archive<'a> {
    what: &'a Path,
    dir: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

impl Archive<'_> {
    fn read(
        &self,
        layers: &Arc<Layers>,
        progress: Option<&Progress>,
    ) -> Result<Vec<Imported>, Error> {
        // Newer `docker save` writes both; the layout then carries the digests.
        if self.dir.join("oci-layout").exists() && self.dir.join("index.json").exists() {
            return self.layout(layers, progress);
        }
        if self.dir.join("manifest.json").exists() {
            return self.docker(layers, progress);
        }
        Err(self.malformed(
            "neither a docker-archive (manifest.json) nor an OCI layout (oci-layout, index.json)",
        ))
    }

    fn docker(
        &self,
        layers: &Arc<Layers>,
        progress: Option<&Progress>,
    ) -> Result<Vec<Imported>, Error> {
        let images: Vec<DockerImage> = self.json("manifest.json")?;
        let mut imported = Vec::new();
        for image in images {
            let config = self.text(&image.config)?;
            let content = Content::new(&self.name(), String::new(), config, image.layers.len())?;
            let files: Vec<PathBuf> = image
                .layers
                .iter()
                .map(|layer| self.file(layer))
                .collect::<Result<_, _>>()?;
            let size = self.layers(layers, &content, &files, progress)?;
            let names = image.repo_tags.unwrap_or_default();
            let names = names
                .iter()
                .map(|name| Name::parse(name))
                .collect::<Result<_, _>>()?;
            imported.push(Imported {
                names,
                content: content.with_size(size),
            });
        }
        Ok(imported)
    }

    fn layout(
        &self,
        layers: &Arc<Layers>,
        progress: Option<&Progress>,
    ) -> Result<Vec<Imported>, Error> {
        let docker_names = self.docker_names();
        let index: Index = self.json("index.json")?;
        let mut imported = Vec::new();
        for descriptor in &index.manifests {
            let mut named: Vec<Name> = [FULL_NAME, REF_NAME]
                .iter()
                .filter_map(|key| descriptor.annotations.get(*key))
                .take(1)
                .map(|name| Name::parse(name))
                .collect::<Result<_, _>>()?;
            let manifest = self.manifest(descriptor, 0)?;
            if let Some(names) =
                docker_names.get(manifest.config.digest.trim_start_matches("sha256:"))
            {
                named = names
                    .iter()
                    .map(|name| Name::parse(name))
                    .collect::<Result<_, _>>()?;
            }
            let config = self.blob_text(&manifest.config)?;
            let content = Content::new(
                &self.name(),
                descriptor.digest.clone(),
                config,
                manifest.layers.len(),
            )?;
            let files: Vec<PathBuf> = manifest
                .layers
                .iter()
                .map(|layer| self.blob(layer))
                .collect::<Result<_, _>>()?;
            let size = self.layers(layers, &content, &files, progress)?;
            imported.push(Imported {
                names: named,
                content: content.with_size(size),
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

    fn manifest(&self, descriptor: &Descriptor, depth: usize) -> Result<Manifest, Error> {
        if !(descriptor.media_type.contains("index") || descriptor.media_type.contains("list")) {
            return self.blob_json(descriptor);
        }
        if depth == MAX_INDEX_DEPTH {
            return Err(self.malformed("an index that names an index, too deep"));
        }
        let index: Index = self.blob_json(descriptor)?;
        let offers: Vec<(String, String)> = index
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(|platform| (platform.os.clone(), platform.architecture.clone()))
            .collect();
        let ours = index.manifests.iter().find(|entry| {
            entry
                .platform
                .as_ref()
                .is_none_or(|platform| platform::is_ours(&platform.os, &platform.architecture))
        });
        match ours {
            Some(entry) => self.manifest(entry, depth + 1),
            None => Err(Error::NoPlatform {
                reference: self.name(),
                wanted: platform::ours(),
                available: platform::list(offers.iter()),
            }),
        }
    }

    fn layers(
        &self,
        layers: &Arc<Layers>,
        content: &Content,
        files: &[PathBuf],
        progress: Option<&Progress>,
    ) -> Result<u64, Error> {
        let io = |path: &Path, source| Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let sizes: Vec<u64> = files
            .iter()
            .map(|path| {
                path.metadata()
                    .map(|meta| meta.len())
                    .map_err(|source| io(path, source))
            })
            .collect::<Result<_, _>>()?;
        let total = sizes.iter().sum();
        let mut done = 0;
        for ((path, size), diff_id) in files.iter().zip(&sizes).zip(&content.diff_ids) {
            let guard = tokio::runtime::Handle::current().block_on(layers.lock(diff_id));
            if !layers.has(diff_id) {
                layers.make(
                    diff_id,
                    File::open(path).map_err(|source| io(path, source))?,
                )?;
            }
            drop(guard);
            done += size;
            if let Some(progress) = progress {
                progress(done, total);
            }
        }
        Ok(total)
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, Error> {
        let text = self.text(name)?;
        serde_json::from_str(&text).map_err(|error| self.malformed(&format!("{name}: {error}")))
    }

    fn blob_json<T: for<'de> Deserialize<'de>>(&self, descriptor: &Descriptor) -> Result<T, Error> {
        let text = self.blob_text(descriptor)?;
        serde_json::from_str(&text)
            .map_err(|error| self.malformed(&format!("blob {}: {error}", descriptor.digest)))
    }

    fn blob_text(&self, descriptor: &Descriptor) -> Result<String, Error> {
        let text = self.text_of(&self.blob(descriptor)?)?;
        let found = format!("sha256:{}", hex(&Sha256::digest(text.as_bytes())));
        if found != descriptor.digest {
            return Err(self.malformed(&format!(
                "blob {} has the digest {found}",
                descriptor.digest
            )));
        }
        Ok(text)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<PathBuf, Error> {
        if !is_sha256(&descriptor.digest) {
            return Err(self.malformed(&format!("{:?} is not a sha256 digest", descriptor.digest)));
        }
        Ok(self
            .dir
            .join("blobs/sha256")
            .join(descriptor.digest.trim_start_matches("sha256:")))
    }

    fn text(&self, name: &str) -> Result<String, Error> {
        self.text_of(&self.file(name)?)
    }

    fn text_of(&self, path: &Path) -> Result<String, Error> {
        let io = |source| Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        if path.metadata().map_err(io)?.len() > MAX_JSON_BYTES {
            return Err(self.malformed(&format!("{} is over 16 MiB", path.display())));
        }
        std::fs::read_to_string(path).map_err(io)
    }

    /// A file named inside the archive; never one outside it, also not by a symlink.
    fn file(&self, name: &str) -> Result<PathBuf, Error> {
        let plain = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path = self.dir.join(name);
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => self.malformed(&format!("{name} is missing")),
            _ => Error::Io {
                action: "find",
                path: path.clone(),
                source,
            },
        };
        let real = path.canonicalize().map_err(io)?;
        let root = self.dir.canonicalize().map_err(io)?;
        if plain && real.starts_with(&root) {
            return Ok(real);
        }
        Err(self.malformed(&format!("{name:?} lies outside the archive")))
    }

    fn name(&self) -> String {
        self.what.display().to_string()
    }

    fn malformed(&self, reason: &str) -> Error {
        Error::Malformed {
            what: self.name(),
            reason: reason.to_owned(),
        }
    }
}
