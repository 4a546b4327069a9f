//! Images from a registry.
//!
//! Layers stream from the socket through decompression and digest onto disk; three at a time.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};

use super::{
    Error, Progress, Source, blocking,
    content::{Content, MAX_CONFIG_BYTES},
    keyring::Keyring,
    layers::{Layers, Pins},
    manifest::{self, Descriptor, Document, MAX_INDEX_DEPTH, Manifest},
    platform,
    reference::Name,
    registry::{Download, Patience, Registry, Search},
};

const LAYERS_AT_ONCE: usize = 3;
/// Of all layers together, compressed.
const MAX_IMAGE_BYTES: u64 = 64 << 30;

/// Brings all layers of the image onto disk and returns what must be recorded of the image; its layers
/// stay while the pins are held. With them, what was asked of which host.
pub async fn pull(
    layers: &Arc<Layers>,
    dir: &Path,
    source: &Source,
    keyring: &Keyring,
    progress: Option<Progress>,
) -> Result<(Content, Pins, Vec<String>), Error> {
    let (name, hosts) = (&source.name, source.hosts.clone());
    let (settings, patience) = (source.settings.clone(), Patience::default());
    let pull = Pull {
        registry: Registry::new(name, hosts, settings, keyring, patience).await?,
        name,
    };
    let (manifest, digest) = pull.manifest().await?;
    let total = pull.size(&manifest, dir)?;
    let config = pull
        .registry
        .small_blob("configuration", &manifest.config, MAX_CONFIG_BYTES)
        .await?;
    let (what, count) = (name.to_string(), manifest.layers.len());
    let content = blocking(move || Content::new(&what, digest, config, count)).await?;
    let pins = layers.pin(&content.diff_ids);
    let meter = Meter::new(total, progress);
    // Boxed, since the compiler cannot see that futures which borrow may cross threads otherwise.
    let downloads: Vec<_> = manifest
        .layers
        .iter()
        .zip(&content.diff_ids)
        .map(|(descriptor, diff_id)| pull.layer(layers, descriptor, diff_id, &meter).boxed())
        .collect();
    stream::iter(downloads)
        .buffer_unordered(LAYERS_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    let (all, ids) = (layers.clone(), content.diff_ids.clone());
    blocking(move || all.complete(&ids)).await?;
    let tried = pull.registry.tried();
    Ok((content.with_size(meter.total), pins, tried))
}

struct Pull<'a> {
    registry: Registry<'a>,
    name: &'a Name,
}

impl Pull<'_> {
    /// The manifest for this machine, and the digest of what the name stands for (the index, if
    /// it is one).
    async fn manifest(&self) -> Result<(Manifest, String), Error> {
        let by = self.name.version();
        let (mut document, digest) = self.registry.manifest(by, None).await?;
        for _ in 0..=MAX_INDEX_DEPTH {
            let entries = match document {
                Document::Manifest(manifest) => return Ok((manifest, digest.to_string())),
                Document::Index(entries) => entries,
            };
            let entry = manifest::choose(&entries).map_err(|available| Error::NoPlatform {
                reference: self.name.to_string(),
                wanted: platform::ours(),
                available,
            })?;
            let by = entry.digest.as_str();
            (document, _) = self.registry.manifest(by, Some(entry)).await?;
        }
        Err(self.malformed("its index names an index that names an index, too deep"))
    }

    /// Of all layers; an error if that is more than there can be.
    fn size(&self, manifest: &Manifest, dir: &Path) -> Result<u64, Error> {
        let sizes = manifest.layers.iter().map(|layer| layer.size);
        let total = sizes.fold(0, u64::saturating_add);
        if total > MAX_IMAGE_BYTES {
            return Err(self.malformed(&format!(
                "its layers have {total} bytes, more than {MAX_IMAGE_BYTES}"
            )));
        }
        let free = nix::sys::statvfs::statvfs(dir)
            .map(|found| found.blocks_available() * found.fragment_size());
        match free {
            Ok(free) if total > free => Err(Error::Registry {
                reference: self.name.to_string(),
                message: format!("its layers have {total} bytes, and {free} are free"),
            }),
            _ => Ok(total),
        }
    }

    async fn layer(
        &self,
        layers: &Arc<Layers>,
        descriptor: &Descriptor,
        diff_id: &str,
        meter: &Arc<Meter>,
    ) -> Result<(), Error> {
        let mut search = Search::default();
        loop {
            let guard = layers.lock(diff_id).await;
            if layers.has(diff_id) {
                meter.add(descriptor.size);
                return Ok(());
            }
            let body = self.registry.blob(descriptor, &mut search).await?;
            let counted = meter.clone();
            let (reader, trouble) = Download::new(
                body,
                &descriptor.digest,
                descriptor.size,
                Arc::new(move |bytes| counted.add(bytes)),
            );
            let (layers, id) = (layers.clone(), diff_id.to_owned());
            let made = tokio::task::spawn_blocking(move || {
                let made = layers.make(&id, reader);
                drop(guard);
                made
            });
            let made = match made.await {
                Ok(made) => made,
                Err(_) => Err(self.malformed("unpacking a layer was interrupted")),
            };
            // What the host did says more than what unpacking made of it; another host may do better.
            match (made, trouble.take()) {
                (Ok(()), _) => return Ok(()),
                (Err(_), Some(trouble)) => search.failed(trouble.to_string()),
                (Err(error), None) => return Err(error),
            }
        }
    }

    fn malformed(&self, reason: &str) -> Error {
        Error::Malformed {
            what: self.name.to_string(),
            reason: reason.to_owned(),
        }
    }
}

/// Adds up what has come in and tells whoever wants to know.
struct Meter {
    done: AtomicU64,
    total: u64,
    progress: Option<Progress>,
}

impl Meter {
    fn new(total: u64, progress: Option<Progress>) -> Arc<Self> {
        Arc::new(Self {
            done: AtomicU64::new(0),
            total,
            progress,
        })
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &self.progress {
            // What a host has sent in vain comes again from another.
            progress(done.min(self.total), self.total);
        }
    }
}
