//! Images from a registry.
//!
//! Layers stream from the socket through decompression and digest onto disk; three at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest, OciManifest},
    secrets::RegistryAuth,
};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{
    Credentials, Error, Progress, content::Content, layers::Layers, platform, reference::Name,
};

const LAYERS_AT_ONCE: usize = 3;
/// A registry that sends nothing for this long is given up.
const STALL: Duration = Duration::from_secs(300);
const CONNECT: Duration = Duration::from_secs(30);
const MAX_CONFIG_BYTES: i64 = 8 << 20;
/// An index may name another index, but not for ever.
const MAX_INDEX_DEPTH: usize = 3;

/// Brings all layers of `name` onto disk and returns what must be recorded of the image.
pub async fn pull(
    layers: &Arc<Layers>,
    name: &Name,
    credentials: &Credentials,
    progress: Option<Progress>,
) -> Result<Content, Error> {
    let pull = Pull {
        client: client(name),
        name,
    };
    let auth = match credentials {
        Credentials::Anonymous => RegistryAuth::Anonymous,
        Credentials::Basic { username, password } => {
            RegistryAuth::Basic(username.clone(), password.clone())
        }
        Credentials::Bearer(token) => RegistryAuth::Bearer(token.clone()),
    };
    let (manifest, digest) = pull.manifest(&auth).await?;
    let config = pull.config(&manifest).await?;
    let content = Content::new(&name.to_string(), digest, config, manifest.layers.len())?;
    let meter = Meter::new(&manifest.layers, progress);
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
    Ok(content.with_size(meter.total))
}

struct Pull<'a> {
    client: Client,
    name: &'a Name,
}

impl Pull<'_> {
    /// The manifest for this machine, and the digest of what the name stands for (the index, if
    /// it is one).
    async fn manifest(&self, auth: &RegistryAuth) -> Result<(OciImageManifest, String), Error> {
        let mut reference: Reference = self.name.reference().clone();
        let mut named = None;
        for _ in 0..=MAX_INDEX_DEPTH {
            let (manifest, digest) = self
                .client
                .pull_manifest(&reference, auth)
                .await
                .map_err(|error| self.explain(error))?;
            let named = named.get_or_insert(digest).clone();
            match manifest {
                OciManifest::Image(image) => return Ok((image, named)),
                OciManifest::ImageIndex(index) => {
                    let entry = self.choose(&index.manifests)?;
                    reference = reference.clone_with_digest(entry.digest.clone());
                }
            }
        }
        Err(self.malformed("its index names an index that names an index, too deep"))
    }

    fn choose<'e>(&self, entries: &'e [ImageIndexEntry]) -> Result<&'e ImageIndexEntry, Error> {
        let offers: Vec<_> = entries
            .iter()
            .map(|entry| {
                entry
                    .platform
                    .as_ref()
                    .map(|p| (p.os.to_string(), p.architecture.to_string()))
            })
            .collect();
        let chosen = offers.iter().position(|offer| {
            offer
                .as_ref()
                .is_some_and(|(os, architecture)| platform::is_ours(os, architecture))
        });
        chosen
            .and_then(|index| entries.get(index))
            .ok_or_else(|| Error::NoPlatform {
                reference: self.name.to_string(),
                wanted: platform::ours(),
                available: platform::list(offers.iter().flatten()),
            })
    }

    async fn config(&self, manifest: &OciImageManifest) -> Result<String, Error> {
        if manifest.config.size > MAX_CONFIG_BYTES {
            return Err(self.malformed("its configuration is over 8 MiB"));
        }
        let mut config = Vec::new();
        self.client
            .pull_blob(self.name.reference(), &manifest.config, &mut config)
            .await
            .map_err(|error| self.explain(error))?;
        String::from_utf8(config).map_err(|_| self.malformed("its configuration is not UTF-8"))
    }

    async fn layer(
        &self,
        layers: &Arc<Layers>,
        descriptor: &OciDescriptor,
        diff_id: &str,
        meter: &Arc<Meter>,
    ) -> Result<(), Error> {
        let guard = layers.lock(diff_id).await;
        if layers.has(diff_id) {
            meter.add(descriptor.size.try_into().unwrap_or(0));
            return Ok(());
        }
        let blob = self
            .client
            .pull_blob_stream(self.name.reference(), descriptor)
            .await
            .map_err(|error| self.explain(error))?;
        let counted = meter.clone();
        let bytes = blob
            .stream
            .inspect_ok(move |chunk| counted.add(chunk.len() as u64));
        let (layers, diff_id) = (layers.clone(), diff_id.to_owned());
        let reader = SyncIoBridge::new(StreamReader::new(bytes));
        let made = tokio::task::spawn_blocking(move || {
            let made = layers.make(&diff_id, reader);
            drop(guard);
            made
        });
        match made.await {
            Ok(made) => made,
            Err(_) => Err(self.malformed("unpacking a layer was interrupted")),
        }
    }

    fn malformed(&self, reason: &str) -> Error {
        Error::Malformed {
            what: self.name.to_string(),
            reason: reason.to_owned(),
        }
    }

    fn explain(&self, error: OciDistributionError) -> Error {
        let reference = self.name.to_string();
        match error {
            OciDistributionError::ImageManifestNotFoundError(_) => Error::NotFound { reference },
            OciDistributionError::ServerError { code: 404, .. } => Error::NotFound { reference },
            OciDistributionError::UnauthorizedError { .. } => Error::Denied {
                reference,
                reason: "the registry wants credentials, or other ones".to_owned(),
            },
            OciDistributionError::AuthenticationFailure(reason) => {
                Error::Denied { reference, reason }
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let messages: Vec<_> = envelope
                    .errors
                    .iter()
                    .map(|error| error.message.clone())
                    .collect();
                match envelope.errors.first().map(|error| &error.code) {
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound,
                    ) => Error::NotFound { reference },
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Error::Denied {
                        reference,
                        reason: messages.join("; "),
                    },
                    _ => Error::Registry {
                        reference,
                        message: messages.join("; "),
                    },
                }
            }
            other => Error::Registry {
                reference,
                message: chain(&other),
            },
        }
    }
}

/// Plain HTTP only to this machine itself.
fn client(name: &Name) -> Client {
    let protocol = if name.is_loopback() {
        ClientProtocol::Http
    } else {
        ClientProtocol::Https
    };
    Client::new(ClientConfig {
        protocol,
        platform_resolver: None,
        read_timeout: Some(STALL),
        connect_timeout: Some(CONNECT),
        user_agent: concat!("vetch/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// An error with its causes: "dial: connection refused" lies two levels down.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Adds up what has come in and tells whoever wants to know.
struct Meter {
    done: AtomicU64,
    total: u64,
    progress: Option<Progress>,
}

impl Meter {
    fn new(layers: &[OciDescriptor], progress: Option<Progress>) -> Arc<Self> {
        let total = layers
            .iter()
            .map(|layer| u64::try_from(layer.size).unwrap_or(0))
            .sum();
        Arc::new(Self {
            done: AtomicU64::new(0),
            total,
            progress,
        })
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &self.progress {
            progress(done, self.total);
        }
    }
}
