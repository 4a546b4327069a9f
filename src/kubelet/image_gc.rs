//! Removal of images that nobody uses, when their disk fills up.
//!
//! Owns the memory of when each image was used. The puller says what it looks up; the manager of
//! evictions asks for everything that is not needed.
//! Always true: an image that a container of this node was made from stays, and so does one that
//! somebody has looked up a moment ago to start a container from it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    events::{Level, Recorder},
    eviction::node_ref,
    pod::record::Record,
    stats::Space,
};
use crate::runtime::{
    Runtime,
    image::{Image, Images, Name},
};
use crate::{causes::causes, ticks::Ticks};

/// How often the disk is looked at, as by the original.
const EVERY: Duration = Duration::from_secs(300);
/// From looking an image up to a container that is recorded with it.
const STARTING: Duration = Duration::from_secs(120);

/// When images are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Use of the disk, in percent, from which on images are removed...
    pub high_percent: u8,
    /// ...until it is down to this.
    pub low_percent: u8,
    /// Younger images stay.
    pub min_age: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
        }
    }
}

impl Policy {
    /// Bytes to free of a disk; 0 if it is not full enough.
    fn wanted(&self, space: &Space) -> u64 {
        let part = |percent: u8| space.capacity_bytes / 100 * u64::from(percent);
        let used = space.capacity_bytes.saturating_sub(space.available_bytes);
        match used >= part(self.high_percent) {
            true => used.saturating_sub(part(self.low_percent)),
            false => 0,
        }
    }
}

/// What containers are about to be made from, as pods name it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    at: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Uses {
    /// To be called before the image is looked up.
    pub fn note(&self, reference: &str) {
        let now = Instant::now();
        let mut at = self.lock();
        at.retain(|_, at| now.duration_since(*at) < STARTING);
        let full = Name::parse(reference).map(|name| name.to_string());
        at.insert(full.unwrap_or_else(|_| reference.to_owned()), now);
    }

    fn covers(&self, image: &Image) -> bool {
        let names = image.names.iter().chain(&image.digests);
        let mut all = names.chain([&image.id]);
        let at = self.lock();
        all.any(|name| at.get(name).is_some_and(|at| at.elapsed() < STARTING))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ImageGc {
    shared: Arc<Shared>,
}

struct Shared {
    images: Images,
    runtime: Runtime,
    uses: Uses,
    policy: Policy,
    events: Recorder,
    node: String,
    /// By image id. Held while images are removed, so that this happens once at a time.
    seen: tokio::sync::Mutex<HashMap<String, Seen>>,
}

/// What is known of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// `None`: it was there before the daemon.
    first: Option<Instant>,
    used: Option<Instant>,
}

impl ImageGc {
    pub fn new(
        images: Images,
        runtime: Runtime,
        uses: Uses,
        policy: Policy,
        events: Recorder,
        node: String,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                images,
                runtime,
                uses,
                policy,
                events,
                node,
                seen: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Keeps the disk of images below the limit until told to stop.
    pub async fn run(self, shutdown: CancellationToken) {
        let known = self.shared.images.list();
        self.shared
            .seen
            .lock()
            .await
            .extend(known.iter().map(|image| {
                let seen = Seen {
                    first: None,
                    used: None,
                };
                (image.id.clone(), seen)
            }));
        let mut ticks = Ticks::new(EVERY);
        loop {
            tokio::select! {
                () = ticks.tick() => self.collect().await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Removes images if their disk is too full, as few as will do.
    async fn collect(&self) {
        // Those of images that were removed while containers of them ran.
        if let Err(error) = self.shared.images.remove_unused_layers().await {
            tracing::warn!(error = causes(&error), "unused layers are not removed");
        }
        let space = match self.space().await {
            Some(space) if space.capacity_bytes > 0 => space,
            Some(_) => {
                let message = "invalid capacity 0 on image filesystem";
                return self.warn("InvalidDiskCapacity", message.into());
            }
            None => return,
        };
        let wanted = self.shared.policy.wanted(&space);
        let enough = space.available_bytes.saturating_add(wanted);
        let mut seen = self.shared.seen.lock().await;
        let candidates = self.candidates(&mut seen).await;
        if wanted == 0 {
            return;
        }
        tracing::info!(
            wanted,
            "the disk of images is nearly full, removing unused ones"
        );
        for id in candidates {
            self.remove(&id, &mut seen).await;
            if self
                .space()
                .await
                .is_none_or(|space| space.available_bytes >= enough)
            {
                return;
            }
        }
        let left = self.space().await.unwrap_or(space);
        let freed = left.available_bytes.saturating_sub(space.available_bytes);
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        );
        self.warn("FreeDiskSpaceFailed", message.clone());
        self.warn("ImageGCFailed", message);
    }

    /// Removes every image that nobody uses and that is old enough.
    pub async fn remove_unused(&self) {
        let mut seen = self.shared.seen.lock().await;
        for id in self.candidates(&mut seen).await {
            self.remove(&id, &mut seen).await;
        }
    }

    async fn remove(&self, id: &str, seen: &mut HashMap<String, Seen>) {
        let uses = self.shared.uses.clone();
        let removed = self
            .shared
            .images
            .remove_if(id, move |image| !uses.covers(image));
        match removed.await {
            Ok(true) => {
                seen.remove(id);
                tracing::info!(image = id, "removed an unused image");
            }
            Ok(false) => {}
            Err(error) => {
                let message = format!("failed to remove image {id}: {}", causes(&error));
                self.warn("ImageGCFailed", message);
            }
        }
    }

    /// Brings `seen` up to date, and lists what may go.
    async fn candidates(&self, seen: &mut HashMap<String, Seen>) -> Vec<String> {
        let images = self.shared.images.list();
        let containers: Vec<Record> = self
            .shared
            .runtime
            .pods()
            .await
            .into_iter()
            .flat_map(|pod| pod.containers)
            .map(|container| Record::here(container, true))
            .collect();
        let used: HashSet<String> = images
            .iter()
            .filter(|image| {
                let of = |record: &Record| is_of(record, image);
                containers.iter().any(of) || self.shared.uses.covers(image)
            })
            .map(|image| image.id.clone())
            .collect();
        let now = Instant::now();
        seen.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in &images {
            let known = seen.entry(image.id.clone()).or_insert(Seen {
                first: Some(now),
                used: None,
            });
            if used.contains(&image.id) {
                known.used = Some(now);
            }
        }
        removable(seen, &used, self.shared.policy.min_age, now)
    }

    async fn space(&self) -> Option<Space> {
        let dir = self.shared.images.dir().to_owned();
        let space = tokio::task::spawn_blocking(move || Space::of(&dir)).await;
        space.ok()?.ok()
    }

    fn warn(&self, reason: &'static str, message: String) {
        tracing::warn!(reason, message, "collecting images");
        let node = node_ref(&self.shared.node);
        let events = &self.shared.events;
        events.about(node, Level::Warning, reason, message);
    }
}

/// Whether the container was made from the image. A name may have moved to another image since.
fn is_of(record: &Record, image: &Image) -> bool {
    record.image_id == image.id
        || image.digests.contains(&record.image_id)
        || image.names.contains(&record.image_name)
}

/// The images that may go, those first that were not used for longest. Pure.
fn removable(
    seen: &HashMap<String, Seen>,
    used: &HashSet<String>,
    min_age: Duration,
    now: Instant,
) -> Vec<String> {
    let old = |seen: &Seen| seen.first.is_none_or(|first| now - first >= min_age);
    let mut found: Vec<(&String, &Seen)> = seen
        .iter()
        .filter(|(id, seen)| !used.contains(*id) && old(seen))
        .collect();
    found.sort_by_key(|(id, seen)| (seen.used, seen.first, (*id).clone()));
    found.into_iter().map(|(id, _)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_must_go() {
        let policy = Policy::default();
        for (available, want) in [(16, 0), (15, 5), (0, 20)] {
            let space = Space {
                capacity_bytes: 100,
                available_bytes: available,
                ..Space::default()
            };
            assert_eq!(policy.wanted(&space), want, "{available} available");
        }
    }

    #[test]
    fn which_may_go() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let seen = |first: Option<u64>, used: Option<u64>| Seen {
            first: first.map(after),
            used: used.map(after),
        };
        let all: HashMap<String, Seen> = [
            ("young", seen(Some(100), None)),
            ("in use", seen(None, Some(200))),
            ("used lately", seen(None, Some(150))),
            ("used once", seen(None, Some(50))),
            ("never used", seen(None, None)),
        ]
        .map(|(id, seen)| (id.to_owned(), seen))
        .into();
        let used = HashSet::from(["in use".to_owned()]);
        let got = removable(&all, &used, Duration::from_secs(120), after(200));
        assert_eq!(got, ["never used", "used once", "used lately"]);
    }
}
