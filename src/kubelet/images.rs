//! Images for containers about to start: policy, credentials, back-off, events.
//!
//! Called by the pod worker. One pull of an image at a time; an image that is there costs a look
//! into memory. One namespace never takes all places for pulls: its registries may be slow.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::Engine;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, ResourceExt};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use super::{
    events::{Level, Recorder},
    image_gc::Uses,
    pod::Member,
};
use crate::causes::causes;
use crate::runtime::image::{self, Credentials, Held, Images, Name, excerpt};

const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// Pulls of different images at once, and of one namespace.
const AT_ONCE: usize = 6;
const AT_ONCE_OF_NAMESPACE: usize = 3;
/// Pull secrets of one pod that are read, and credentials of them that are tried.
const MOST_SECRETS: usize = 64;
const MOST_CREDENTIALS: usize = 16;
/// Of an image's name in an event.
const LONGEST_TOLD: usize = 300;
/// Failures remembered; when there are more, old ones are forgotten.
const REMEMBERED: usize = 1024;

/// Why there is no image, as the container's waiting state says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    /// When to try again.
    pub after: Duration,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Puller {
    shared: Arc<Shared>,
}

struct Shared {
    images: Images,
    client: Client,
    events: Recorder,
    uses: Uses,
    /// Held while an image is pulled, by its full name.
    pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    at_once: tokio::sync::Semaphore,
    /// By namespace.
    few: Mutex<HashMap<String, Arc<tokio::sync::Semaphore>>>,
    /// By pod UID and image.
    failed: Mutex<HashMap<(String, String), Failed>>,
}

#[derive(Clone, Copy)]
struct Failed {
    at: Instant,
    delay: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

impl Puller {
    pub fn new(images: Images, client: Client, events: Recorder, uses: Uses) -> Self {
        Self {
            shared: Arc::new(Shared {
                images,
                client,
                events,
                uses,
                pulling: Mutex::default(),
                at_once: tokio::sync::Semaphore::new(AT_ONCE),
                few: Mutex::default(),
                failed: Mutex::default(),
            }),
        }
    }

    /// The member's image, pulled if its policy says so; its layers stay while it is held.
    pub async fn ensure(&self, pod: &Pod, member: &Member<'_>) -> Result<Held, Failure> {
        let reference = member.spec.image.as_deref().unwrap_or_default();
        self.shared.uses.note(reference);
        let result = self.find_or_pull(pod, member, reference).await;
        if let Err(failure) = &result {
            let events = &self.shared.events;
            let message = format!("Error: {}", failure.reason);
            events.container(pod, member, Level::Warning, "Failed", message);
        }
        result
    }

    /// Changes whenever an image has come.
    pub fn additions(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.images.additions()
    }

    /// Whether the member can have its image without asking a registry.
    pub fn is_there(&self, member: &Member<'_>) -> bool {
        let reference = member.spec.image.as_deref().unwrap_or_default();
        let name = Name::parse(reference);
        let here = |name: Name| policy(member, &name) != Policy::Always;
        name.is_ok_and(here) && matches!(self.shared.images.hold(reference), Ok(Some(_)))
    }

    /// Says that the pull waits.
    pub fn backing_off(&self, pod: &Pod, member: &Member<'_>) -> String {
        let reference = told(member.spec.image.as_deref().unwrap_or_default());
        let message = format!("Back-off pulling image {reference:?}");
        let events = &self.shared.events;
        events.container(pod, member, Level::Normal, "BackOff", &message);
        message
    }

    async fn find_or_pull(
        &self,
        pod: &Pod,
        member: &Member<'_>,
        reference: &str,
    ) -> Result<Held, Failure> {
        let events = &self.shared.events;
        let name = Name::parse(reference).map_err(|error| {
            let reference = told(reference);
            let message = format!("Failed to apply default image tag {reference:?}: {error}");
            events.container(pod, member, Level::Warning, "InspectFailed", &message);
            failure("InvalidImageName", message)
        })?;
        let policy = policy(member, &name);
        let found = self.shared.images.hold(reference).map_err(|error| {
            let message = format!("Failed to inspect image {reference:?}: {}", causes(&error));
            events.container(pod, member, Level::Warning, "InspectFailed", &message);
            failure("ImageInspectError", message)
        })?;
        match (found, policy) {
            (Some(image), Policy::IfNotPresent | Policy::Never) => {
                let message = format!("Container image {reference:?} already present on machine");
                events.container(pod, member, Level::Normal, "Pulled", message);
                Ok(image)
            }
            (None, Policy::Never) => {
                let message = format!(
                    "Container image {reference:?} is not present with pull policy of Never"
                );
                events.container(pod, member, Level::Warning, "ErrImageNeverPull", &message);
                Err(failure("ErrImageNeverPull", message))
            }
            _ => self.pull(pod, member, reference, &name, policy).await,
        }
    }

    async fn pull(
        &self,
        pod: &Pod,
        member: &Member<'_>,
        reference: &str,
        name: &Name,
        policy: Policy,
    ) -> Result<Held, Failure> {
        let events = &self.shared.events;
        let began = Instant::now();
        let message = format!("Pulling image {reference:?}");
        events.container(pod, member, Level::Normal, "Pulling", message);
        let lock = self.shared.lock(&name.to_string());
        let _alone = lock.lock().await;
        let few = self.shared.few(&pod.namespace().unwrap_or_default());
        let _few = few.acquire().await;
        let _at_once = self.shared.at_once.acquire().await;
        if policy == Policy::IfNotPresent
            && let Ok(Some(image)) = self.shared.images.hold(reference)
        {
            // Another pod has pulled it meanwhile.
            return Ok(image);
        }
        let pulling = Instant::now();
        let key = (pod.uid().unwrap_or_default(), reference.to_owned());
        match self.try_credentials(pod, name, reference).await {
            Ok(image) => {
                self.shared.failed().remove(&key);
                let message = format!(
                    "Successfully pulled image {reference:?} in {:.1?} ({:.1?} including waiting). Image size: {} bytes.",
                    pulling.elapsed(),
                    began.elapsed(),
                    image.image().size_bytes
                );
                events.container(pod, member, Level::Normal, "Pulled", message);
                Ok(image)
            }
            Err(error) => {
                let text = causes(&error);
                let message = format!("Failed to pull image {reference:?}: {text}");
                events.container(pod, member, Level::Warning, "Failed", &message);
                Err(Failure {
                    reason: "ErrImagePull",
                    message: text,
                    after: self.shared.failed_again(key),
                })
            }
        }
    }

    /// Each credential that fits, then none.
    async fn try_credentials(
        &self,
        pod: &Pod,
        name: &Name,
        reference: &str,
    ) -> Result<Held, image::Error> {
        let images = &self.shared.images;
        let mut denied = None;
        for credentials in self.credentials(pod, name).await {
            match images.pull(reference, &credentials, None).await {
                Err(error @ image::Error::Denied { .. }) => denied = Some(error),
                result => return result,
            }
        }
        match (
            images.pull(reference, &Credentials::Anonymous, None).await,
            denied,
        ) {
            (Err(_), Some(denied)) => Err(denied),
            (result, _) => result,
        }
    }

    /// From the pod's pull secrets; one that is missing is told and passed over.
    async fn credentials(&self, pod: &Pod, name: &Name) -> Vec<Credentials> {
        let namespace = pod.namespace().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(self.shared.client.clone(), &namespace);
        let named = pod.spec.iter().flat_map(|spec| &spec.image_pull_secrets);
        let named: BTreeSet<String> = named.flatten().map(|named| named.name.clone()).collect();
        if named.len() > MOST_SECRETS {
            let message = format!(
                "The pod names {} image pull secrets; the first {MOST_SECRETS} by name are read.",
                named.len()
            );
            let events = &self.shared.events;
            events.pod(
                pod,
                Level::Warning,
                "FailedToRetrieveImagePullSecret",
                message,
            );
        }
        let mut found = Vec::new();
        for reference in named.into_iter().take(MOST_SECRETS) {
            if found.len() >= MOST_CREDENTIALS {
                break;
            }
            match secrets.get(&reference).await {
                Ok(secret) => found.extend(matching(&secret, name)),
                Err(error) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference
                    );
                    tracing::debug!(secret = reference, %error, "pull secret not read");
                    self.shared.events.pod(
                        pod,
                        Level::Warning,
                        "FailedToRetrieveImagePullSecret",
                        message,
                    );
                }
            }
        }
        found.truncate(MOST_CREDENTIALS);
        found
    }
}

impl Shared {
    /// The places of a namespace.
    fn few(&self, namespace: &str) -> Arc<tokio::sync::Semaphore> {
        let mut few = self.few.lock().unwrap_or_else(PoisonError::into_inner);
        few.retain(|_, places| Arc::strong_count(places) > 1);
        let places = || Arc::new(tokio::sync::Semaphore::new(AT_ONCE_OF_NAMESPACE));
        few.entry(namespace.to_owned())
            .or_insert_with(places)
            .clone()
    }

    fn lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody pulls what only this map knows.
        pulling.retain(|_, lock| Arc::strong_count(lock) > 1);
        pulling.entry(name.to_owned()).or_default().clone()
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to wait now.
    fn failed_again(&self, key: (String, String)) -> Duration {
        let now = Instant::now();
        let mut failed = self.failed();
        let fresh = |failed: &Failed| now - failed.at < 2 * LONGEST_DELAY;
        if failed.len() > REMEMBERED {
            failed.retain(|_, failed| fresh(failed));
        }
        let delay = match failed.get(&key) {
            Some(earlier) if fresh(earlier) => (earlier.delay * 2).min(LONGEST_DELAY),
            _ => FIRST_DELAY,
        };
        failed.insert(key, Failed { at: now, delay });
        delay
    }
}

/// Whether a container that waits for this reason waits for its image.
pub fn is_about_image(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull"
    )
}

fn failure(reason: &'static str, message: String) -> Failure {
    Failure {
        reason,
        message,
        after: FIRST_DELAY,
    }
}

fn policy(member: &Member<'_>, name: &Name) -> Policy {
    match member.spec.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("IfNotPresent") => Policy::IfNotPresent,
        Some("Never") => Policy::Never,
        _ if name.tagged().is_some_and(|name| name.ends_with(":latest")) => Policy::Always,
        _ => Policy::IfNotPresent,
    }
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// Base64 of `username:password`.
    #[serde(default)]
    auth: String,
}

impl Auth {
    fn credentials(&self) -> Option<Credentials> {
        let (username, password) = match self.auth.as_str() {
            "" => (self.username.clone(), self.password.clone()),
            auth => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(auth)
                    .ok()?;
                let text = String::from_utf8(bytes).ok()?;
                let (username, password) = text.split_once(':')?;
                (
                    username.to_owned(),
                    password.trim_end_matches('\0').to_owned(),
                )
            }
        };
        (!username.is_empty()).then_some(Credentials::Basic { username, password })
    }
}

/// The secret's credentials for the image's registry, the closest path first.
fn matching(secret: &Secret, name: &Name) -> Vec<Credentials> {
    let data = secret.data.as_ref();
    let file = |key: &str| data.and_then(|data| data.get(key)).map(|bytes| &bytes.0);
    let repository = &name.repository();
    let auths = match (file(".dockerconfigjson"), file(".dockercfg")) {
        (Some(bytes), _) => {
            DockerConfig(repository).deserialize(&mut serde_json::Deserializer::from_slice(bytes))
        }
        (None, Some(bytes)) => {
            Auths(repository).deserialize(&mut serde_json::Deserializer::from_slice(bytes))
        }
        (None, None) => return Vec::new(),
    };
    let mut auths = auths.unwrap_or_default();
    auths.sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
    auths
        .iter()
        .filter_map(|(_, auth)| auth.credentials())
        .take(MOST_CREDENTIALS)
        .collect()
}

/// Reads the `auths` of a `config.json` for one repository, and keeps nothing of the others.
struct DockerConfig<'r>(&'r str);

/// Reads credentials by place for one repository.
struct Auths<'r>(&'r str);

type Found = Vec<(String, Auth)>;

impl<'de> DeserializeSeed<'de> for DockerConfig<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DockerConfig<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a Docker configuration")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "auths" => found = map.next_value_seed(Auths(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

impl<'de> DeserializeSeed<'de> for Auths<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Auths<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("credentials by registry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Vec::new();
        while let Some(place) = map.next_key::<String>()? {
            let place = normal(&place);
            match covers(&place, self.0) && found.len() < MOST_CREDENTIALS {
                true => found.push((place, map.next_value()?)),
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// `https://index.docker.io/v1/` is `docker.io`.
fn normal(place: &str) -> String {
    let place = place
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let place = place
        .strip_suffix("/v1")
        .or_else(|| place.strip_suffix("/v2"))
        .unwrap_or(place);
    match place {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        place => place.to_owned(),
    }
}

/// Whether the place (a host, with `*` for parts of its name, and perhaps a path) holds the
/// repository.
fn covers(place: &str, repository: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        (host.to_owned(), path.to_owned())
    };
    let ((pattern, prefix), (host, path)) = (split(place), split(repository));
    let labels = |host: &str| host.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (pattern, host) = (labels(&pattern), labels(&host));
    pattern.len() == host.len()
        && pattern
            .iter()
            .zip(&host)
            .all(|(pattern, label)| pattern == "*" || pattern == label)
        && (prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}/")))
}

/// An image's name in an event: pods may give one of a megabyte.
fn told(reference: &str) -> String {
    excerpt(reference, LONGEST_TOLD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::pod::member;
    use serde_json::json;

    #[test]
    fn which_policy_holds() {
        for (image, given, want) in [
            ("nginx", None, Policy::Always),
            ("nginx:latest", None, Policy::Always),
            ("nginx:1", None, Policy::IfNotPresent),
            ("nginx:latest", Some("Never"), Policy::Never),
            ("nginx:1", Some("Always"), Policy::Always),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers":
                [{"name": "a", "image": image, "imagePullPolicy": given}]}}))
            .unwrap();
            let member = member(&pod, "a").unwrap();
            assert_eq!(
                policy(&member, &Name::parse(image).unwrap()),
                want,
                "{image}"
            );
        }
    }

    #[test]
    fn huge_secrets_give_few_credentials() {
        let many: String = (0..100_000)
            .map(|n| format!("\"r{n}.example\":{{}},"))
            .collect();
        let same = "\"r.example\":{\"username\":\"u\",\"password\":\"p\"},".repeat(1000);
        let file = format!("{{\"x\":[1],\"auths\":{{{many}{same}\"last.example\":{{}}}}}}");
        let secret: Secret = serde_json::from_value(json!({"data": {".dockerconfigjson":
            base64::engine::general_purpose::STANDARD.encode(file)}}))
        .unwrap();
        let found = matching(&secret, &Name::parse("r.example/a").unwrap());
        assert_eq!(found.len(), MOST_CREDENTIALS);
    }

    #[test]
    fn which_credentials_fit() {
        let auths = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOmh1Yg=="},
            "registry.example:5000": {"username": "host", "password": "x"},
            "registry.example:5000/team": {"username": "team", "password": "x"},
            "*.corp.example": {"username": "star", "password": "x"},
        }});
        let secret: Secret = serde_json::from_value(json!({"data": {".dockerconfigjson":
            base64::engine::general_purpose::STANDARD.encode(auths.to_string())}}))
        .unwrap();
        for (image, want) in [
            ("nginx", vec!["hub"]),
            ("registry.example:5000/a", vec!["host"]),
            ("registry.example:5000/team/a", vec!["team", "host"]),
            ("registry.example:5000/teams/a", vec!["host"]),
            ("a.corp.example/b", vec!["star"]),
            ("a.b.corp.example/b", vec![]),
        ] {
            let found: Vec<String> = matching(&secret, &Name::parse(image).unwrap())
                .into_iter()
                .map(|credentials| match credentials {
                    Credentials::Basic { username, .. } => username,
                    other => format!("{other:?}"),
                })
                .collect();
            assert_eq!(found, want, "{image}");
        }
    }
}
