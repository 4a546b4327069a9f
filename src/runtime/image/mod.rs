//! Images on this node: pull, import, list, remove, and their unpacked layers.
//!
//! Owns `images/` in the node's state folder. Called by the kubelet and the command line.
//! Always true:
//! - A layer is downloaded, checked against its digest and unpacked once, streamed, never held in
//!   memory.
//! - An image is listed only when all of it is there; a cut pull leaves only finished layers.
//! - A layer goes only when no image has it, no container is made of it, and nobody is about to use
//!   it: a removal waits for no pull, and no pull for a removal.
//!
//! Start at [`Images::pull`]; `layers.rs` and `unpack` put bytes on disk.

mod archive;
mod content;
mod digest;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod hosts;
mod import;
mod json;
pub mod keyring;
mod layers;
mod manifest;
mod parents;
mod platform;
mod pull;
mod records;
mod reference;
mod registry;
mod tarball;
#[cfg(test)]
mod tests;
mod unpack;

pub use folder::Came;
pub use hosts::Settings;
pub use json::excerpt;
pub use keyring::Keyring;
pub use reference::Name;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use layers::{Layers, Pins};
use records::{Record, Records};
use tokio::sync::{Mutex, watch};

/// Names of one image, and digests; the oldest are forgotten.
const MOST_NAMES: usize = 256;

/// The node's images; cheap to clone.
#[derive(Clone, Debug)]
pub struct Images {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    layers: Arc<Layers>,
    records: Records,
    /// Containers' records lie below.
    run_dir: PathBuf,
    /// By image id. Changed only while `changing` is held.
    images: RwLock<HashMap<String, Arc<Image>>>,
    /// One change of records at a time, from the look that decides it.
    changing: Mutex<()>,
    /// Where registries are configured.
    settings: Arc<Settings>,
    /// Counts images and names that were added.
    additions: watch::Sender<u64>,
}

/// An image that somebody is going to use: its layers stay while this is held, whoever removes it.
#[derive(Debug)]
pub struct Held {
    image: Image,
    /// Of a pull: which hosts were asked, and what came.
    tried: Vec<String>,
    _pins: Pins,
}

impl Held {
    pub fn image(&self) -> &Image {
        &self.image
    }

    pub fn tried(&self) -> &[String] {
        &self.tried
    }
}

/// One image that is wholly here.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:...` of its configuration.
    pub id: String,
    /// Full names with tag: `docker.io/library/nginx:1.27`.
    pub names: Vec<String>,
    /// Full names with digest: `docker.io/library/nginx@sha256:...`.
    pub digests: Vec<String>,
    pub size_bytes: u64,
    pub config: oci_spec::image::ImageConfiguration,
    /// Unpacked layer folders, lowest first.
    pub layers: Vec<PathBuf>,
}

/// User name and password, or a token, for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// A token for the registry itself.
    Bearer(String),
    /// A token that the server for tokens gives others for (an identity token).
    Refresh(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(..)",
            Self::Bearer(_) => "Bearer(..)",
            Self::Refresh(_) => "Refresh(..)",
        })
    }
}

/// Where an image comes from, as it is configured now.
#[derive(Debug)]
pub struct Source {
    name: Name,
    hosts: Vec<hosts::Host>,
    settings: Arc<Settings>,
    /// The node's own credentials.
    keyring: Keyring,
}

impl Source {
    /// What credentials are looked up for: host and path, of each host that will be asked.
    pub fn targets(&self) -> Vec<String> {
        let (registry, path) = (self.name.registry(), self.name.path());
        let targets = self.hosts.iter();
        let mut targets: Vec<String> = targets
            .map(|host| host.credentials_for(registry, path))
            .collect();
        targets.dedup();
        targets
    }
}

/// Bytes so far, of how many (0: not known yet).
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

impl Images {
    /// Takes over `state_dir/images`; what a crash left unfinished there is removed. Containers are
    /// those that the runtime has recorded below `run_dir`.
    pub async fn open(
        state_dir: PathBuf,
        run_dir: PathBuf,
        settings: Settings,
    ) -> Result<Self, Error> {
        blocking(move || {
            let dir = state_dir.join("images");
            let layers = Arc::new(Layers::open(&dir)?);
            let records = Records::open(&dir)?;
            let mut images = HashMap::new();
            for record in records.load()? {
                match image(&record, &layers) {
                    Ok(image) => {
                        images.insert(record.id.clone(), Arc::new(image));
                    }
                    // A damaged image is pulled again rather than run.
                    Err(error) => {
                        tracing::warn!(image = record.id, %error, "a damaged image is set aside");
                        records.set_aside(&record.id)?;
                    }
                }
            }
            Ok(Self {
                shared: Arc::new(Shared {
                    dir,
                    layers,
                    records,
                    run_dir,
                    images: RwLock::new(images),
                    changing: Mutex::default(),
                    settings: Arc::new(settings),
                    additions: watch::channel(0).0,
                }),
            })
        })
        .await
    }

    /// By name as a pod writes it (`nginx`, `nginx:1.27`, `host:5000/a/b@sha256:...`) or image id.
    pub async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        Ok(self.find(reference)?.map(|image| image.as_ref().clone()))
    }

    /// The same for somebody who is going to use it.
    pub fn hold(&self, reference: &str) -> Result<Option<Held>, Error> {
        let images = self.shared.read();
        let Some(image) = find_in(&images, reference)? else {
            return Ok(None);
        };
        // While nobody can remove it: a removal takes it from the list before it looks for pins.
        let pins = self.shared.layers.pin(image.config.rootfs().diff_ids());
        Ok(Some(Held {
            image: image.as_ref().clone(),
            tried: Vec::new(),
            _pins: pins,
        }))
    }

    /// Changes whenever an image has come, or another name of one.
    pub fn additions(&self) -> watch::Receiver<u64> {
        self.shared.additions.subscribe()
    }

    /// Looks up which hosts serve an image and what the node's credentials are; the files are read
    /// anew each time.
    pub async fn source(&self, reference: &str) -> Result<Source, Error> {
        let name = Name::parse(reference)?;
        let settings = self.shared.settings.clone();
        blocking(move || {
            let mut source = Source {
                hosts: settings.hosts(name.registry())?,
                name,
                settings: settings.clone(),
                keyring: Keyring::default(),
            };
            source.keyring = settings.credentials(&source.targets())?;
            Ok(source)
        })
        .await
    }

    /// Pulls with the given credentials, and with the node's after them.
    pub async fn pull(
        &self,
        source: &Source,
        mut keyring: Keyring,
        progress: Option<Progress>,
    ) -> Result<Held, Error> {
        let shared = &self.shared;
        keyring.join(source.keyring.clone());
        let pulled = pull::pull(&shared.layers, &shared.dir, source, &keyring, progress);
        let (content, pins, tried) = pulled.await?;
        Ok(Held {
            image: self.add(content.record(Some(&source.name))).await?,
            tried,
            _pins: pins,
        })
    }

    /// A docker-archive or OCI layout (folder or tar), names as in the archive.
    pub async fn import(
        &self,
        path: &Path,
        progress: Option<Progress>,
    ) -> Result<Vec<Image>, Error> {
        let (shared, path) = (self.shared.clone(), path.to_owned());
        let imported = blocking(move || {
            import::import(
                &shared.layers,
                &path,
                &shared.dir.join("tmp"),
                progress.as_ref(),
            )
        })
        .await?;
        let mut images = Vec::new();
        for found in imported {
            let mut image = None;
            let names: Vec<Option<&Name>> = match found.names.as_slice() {
                [] => vec![None],
                names => names.iter().map(Some).collect(),
            };
            for name in names {
                image = Some(self.add(found.content.clone().record(name)).await?);
            }
            images.extend(image);
        }
        Ok(images)
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<Arc<Image>> = self.shared.read().values().cloned().collect();
        images.sort_by(|a, b| a.names.cmp(&b.names));
        images
    }

    /// Removes a name; the last one takes the image with it, and the layers that nobody uses. Those
    /// that a container is made of stay until it is gone.
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let changing = self.shared.changing.lock().await;
        // Only now: while this waited the image may have got another name.
        let Some(found) = self.find(reference)? else {
            return Err(Error::NotFound {
                reference: reference.to_owned(),
            });
        };
        let mut image = found.as_ref().clone();
        if reference != found.id {
            let name = Name::parse(reference)?.to_string();
            let by_digest = image.digests.contains(&name);
            image.names.retain(|other| *other != name);
            image.digests.retain(|other| *other != name);
            if !image.names.is_empty() || by_digest && !image.digests.is_empty() {
                return self.record(image).await;
            }
        }
        let shared = self.shared.clone();
        let unused = blocking(move || {
            shared.records.delete(&image.id)?;
            shared.write().remove(&image.id);
            shared.unused_layers()
        });
        let unused = unused.await?;
        drop(changing);
        blocking(move || layers::remove_all(unused)).await
    }

    /// Removes an image with all its names and its unused layers, if `unused` says so; says whether
    /// it did. Nobody looks the image up while `unused` decides, and nobody finds it afterwards.
    pub async fn remove_if(
        &self,
        id: &str,
        unused: impl FnOnce(&Image) -> bool + Send + 'static,
    ) -> Result<bool, Error> {
        let changing = self.shared.changing.lock().await;
        let (shared, id) = (self.shared.clone(), id.to_owned());
        let removed = blocking(move || {
            {
                let mut images = shared.write();
                match images.get(&id) {
                    Some(image) if unused(image) => images.remove(&id),
                    _ => return Ok(None),
                };
            }
            shared.records.delete(&id)?;
            shared.unused_layers().map(Some)
        });
        let Some(unused) = removed.await? else {
            return Ok(false);
        };
        drop(changing);
        blocking(move || layers::remove_all(unused)).await?;
        Ok(true)
    }

    /// Removes layers that nobody uses any more: those that containers have outlived their images
    /// with.
    pub async fn remove_unused_layers(&self) -> Result<(), Error> {
        let changing = self.shared.changing.lock().await;
        let shared = self.shared.clone();
        let unused = blocking(move || shared.unused_layers()).await?;
        drop(changing);
        blocking(move || layers::remove_all(unused)).await
    }

    /// The folders that hold layers; for measuring the disk they use.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    fn find(&self, reference: &str) -> Result<Option<Arc<Image>>, Error> {
        find_in(&self.shared.read(), reference)
    }

    /// Adds an image, or its names to the one that is there. A name moves from the image that had
    /// it before.
    async fn add(&self, record: Record) -> Result<Image, Error> {
        let _changing = self.shared.changing.lock().await;
        let mut image = image(&record, &self.shared.layers)?;
        let others: Vec<Arc<Image>> = self.shared.write().values().cloned().collect();
        for other in others {
            if other.id == image.id {
                merge(&mut image.names, &other.names);
                merge(&mut image.digests, &other.digests);
                image.size_bytes = image.size_bytes.max(other.size_bytes);
            } else if other.names.iter().any(|name| image.names.contains(name)) {
                let mut other = other.as_ref().clone();
                other.names.retain(|name| !image.names.contains(name));
                self.record(other).await?;
            }
        }
        self.record(image.clone()).await?;
        Ok(image)
    }

    /// Writes an image's record and shows it. The caller holds `changing`.
    async fn record(&self, image: Image) -> Result<(), Error> {
        let shared = self.shared.clone();
        blocking(move || {
            let config = image.config.to_string().map_err(|error| Error::Malformed {
                what: image.id.clone(),
                reason: error.to_string(),
            })?;
            shared.records.save(&Record {
                id: image.id.clone(),
                names: image.names.clone(),
                digests: image.digests.clone(),
                size_bytes: image.size_bytes,
                config,
                diff_ids: image.config.rootfs().diff_ids().clone(),
            })?;
            shared.write().insert(image.id.clone(), Arc::new(image));
            shared.additions.send_modify(|count| *count += 1);
            Ok(())
        })
        .await
    }
}

impl Shared {
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<Image>>> {
        self.images
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Arc<Image>>> {
        self.images
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts the layers out of the way that nobody uses. The caller holds `changing`.
    fn unused_layers(&self) -> Result<Vec<PathBuf>, Error> {
        let ids = |image: &Arc<Image>| image.config.rootfs().diff_ids().clone();
        let images: Vec<Vec<String>> = self.read().values().map(ids).collect();
        self.layers.unused(&images, |layers| {
            super::records::used_layers(&self.run_dir, layers)
        })
    }
}

fn find_in(
    images: &HashMap<String, Arc<Image>>,
    reference: &str,
) -> Result<Option<Arc<Image>>, Error> {
    if let Some(image) = images.get(reference) {
        return Ok(Some(image.clone()));
    }
    let name = Name::parse(reference)?.to_string();
    let named = |image: &&Arc<Image>| image.names.contains(&name) || image.digests.contains(&name);
    Ok(images.values().find(named).cloned())
}

fn image(record: &Record, layers: &Layers) -> Result<Image, Error> {
    let malformed = |reason: String| Error::Malformed {
        what: record.id.clone(),
        reason,
    };
    let config = content::parse(&record.config).map_err(malformed)?;
    if let Some(missing) = record
        .diff_ids
        .iter()
        .find(|id| !content::is_sha256(id) || !layers.has(id))
    {
        return Err(malformed(format!("layer {missing} is missing")));
    }
    Ok(Image {
        id: record.id.clone(),
        names: record.names.clone(),
        digests: record.digests.clone(),
        size_bytes: record.size_bytes,
        layers: layers.stack(&record.diff_ids),
        config,
    })
}

/// Adds older names, as far as there is room: a registry may serve the same image under any.
fn merge(into: &mut Vec<String>, from: &[String]) {
    for text in from {
        if into.len() < MOST_NAMES && !into.contains(text) {
            into.push(text.clone());
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Malformed {
            what: "images".to_owned(),
            reason: error.to_string(),
        }),
    }
}

/// What came of asking all hosts of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    NotFound,
    Denied,
    Failed,
    /// No host is configured that may be asked.
    NoHost,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Denied => "access denied",
            Self::Failed => "no host of the registry gave it out",
            Self::NoHost => {
                "no host of the registry may be asked for it: see the capabilities in hosts.toml"
            }
        })
    }
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("invalid image name {name:?}: {reason}")]
    InvalidName { name: String, reason: String },
    /// There is no such image here.
    #[error("{reference}: not found")]
    NotFound { reference: String },
    /// None of the registry's hosts gave it out; `tried` says what each was asked and what came.
    #[error("{reference}: {outcome}: {tried}")]
    Hosts {
        reference: String,
        outcome: Outcome,
        tried: String,
    },
    /// A file of the node's owner about registries.
    #[error("configuration of registries: {path}: {reason}")]
    Configuration { path: PathBuf, reason: String },
    #[error("{reference}: no image for {wanted}; it has {available}")]
    NoPlatform {
        reference: String,
        wanted: String,
        available: String,
    },
    #[error("{reference}: {message}")]
    Registry { reference: String, message: String },
    #[error("{what}: {reason}")]
    Malformed { what: String, reason: String },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}
