//! Images for containers about to start: policy, credentials, back-off, events.
//!
//! Called by the pod worker. One pull of an image at a time; an image that is there costs a look
//! into memory. One namespace never takes all places for pulls: its registries may be slow.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, ResourceExt};

use super::{
    events::{Level, Recorder},
    image_gc::Uses,
    pod::Member,
};
use crate::causes::causes;
use crate::runtime::image::{
    self, Held, Images, Name, excerpt,
    keyring::{Form, Keyring},
};

const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// Pulls of different images at once, and of one namespace.
const AT_ONCE: usize = 6;
const AT_ONCE_OF_NAMESPACE: usize = 3;
/// Pull secrets of one pod that are read.
const MOST_SECRETS: usize = 64;
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
        match self.fetch(pod, reference).await {
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

    async fn fetch(&self, pod: &Pod, reference: &str) -> Result<Held, image::Error> {
        let images = &self.shared.images;
        let source = images.source(reference).await?;
        let keyring = self.keyring(pod, &source.targets()).await;
        images.pull(&source, keyring, None).await
    }

    /// From the pod's pull secrets; one that is missing or cannot be read is told and passed over.
    async fn keyring(&self, pod: &Pod, targets: &[String]) -> Keyring {
        let namespace = pod.namespace().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(self.shared.client.clone(), &namespace);
        let named = pod.spec.iter().flat_map(|spec| &spec.image_pull_secrets);
        let named: BTreeSet<String> = named.flatten().map(|named| named.name.clone()).collect();
        let told = |message: String| {
            self.shared.events.pod(
                pod,
                Level::Warning,
                "FailedToRetrieveImagePullSecret",
                message,
            );
        };
        if named.len() > MOST_SECRETS {
            told(format!(
                "The pod names {} image pull secrets; the first {MOST_SECRETS} by name are read.",
                named.len()
            ));
        }
        let mut keyring = Keyring::default();
        for reference in named.into_iter().take(MOST_SECRETS) {
            match secrets.get(&reference).await {
                Ok(secret) => {
                    if let Err(reason) = add_secret(&mut keyring, &secret, targets) {
                        told(format!(
                            "Unable to read the image pull secret {reference:?}: {reason}"
                        ));
                    }
                }
                Err(error) => {
                    tracing::debug!(secret = reference, %error, "pull secret not read");
                    told(format!(
                        "Unable to retrieve some image pull secrets ({reference}); attempting to pull the image may not succeed."
                    ));
                }
            }
        }
        keyring
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

/// Adds what the secret has for the places that are going to be asked.
fn add_secret(keyring: &mut Keyring, secret: &Secret, targets: &[String]) -> Result<(), String> {
    let forms = [
        (".dockerconfigjson", Form::Config),
        (".dockercfg", Form::Cfg),
    ];
    let data = secret.data.iter().flatten();
    let found = forms.iter().find_map(|(key, form)| {
        let mut data = data.clone();
        let (key, bytes) = data.find(|(name, _)| name == key)?;
        Some((key, &bytes.0, *form))
    });
    match found {
        None => Err("it has neither .dockerconfigjson nor .dockercfg".to_owned()),
        Some((key, bytes, form)) => keyring
            .add(bytes, form, targets)
            .map_err(|reason| format!("{key}: {reason}")),
    }
}

/// An image's name in an event: pods may give one of a megabyte.
fn told(reference: &str) -> String {
    excerpt(reference, LONGEST_TOLD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::pod::member;
    use base64::Engine;
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
    fn secrets_of_both_types() {
        let data = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let auths = r#"{"r.example": {"username": "u", "password": "p"}}"#;
        for (secret, want) in [
            (json!({".dockercfg": data(auths)}), Ok(1)),
            (
                json!({".dockerconfigjson": data(&format!("{{\"auths\":{auths}}}"))}),
                Ok(1),
            ),
            (json!({".dockerconfigjson": data("{}")}), Ok(0)),
            (
                json!({".dockerconfigjson": data("nonsense")}),
                Err(".dockerconfigjson: line 1 column 2: not JSON"),
            ),
            (
                json!({"config.json": data(auths)}),
                Err("it has neither .dockerconfigjson nor .dockercfg"),
            ),
        ] {
            let secret: Secret = serde_json::from_value(json!({ "data": secret })).unwrap();
            let mut keyring = Keyring::default();
            let targets = ["r.example/a".to_owned()];
            let got = add_secret(&mut keyring, &secret, &targets)
                .map(|()| keyring.matching("r.example/a", true).len());
            assert_eq!(got, want.map_err(str::to_owned));
        }
    }
}
