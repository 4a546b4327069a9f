//! Static pods: manifests in a folder on the node, run with or without an API server.
//!
//! Owns the watch of the folder and the pods' names and UIDs. The kubelet's loop runs them like
//! others and shows each in the API as a mirror pod.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Node, Pod, Toleration},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    folder_watch::FolderWatch,
    sources::{Change, Sender, Source},
};
use crate::{hex::hex, runtime::files};

use crate::ticks;

/// Says that a pod in the API stands for a static one; the value is that one's hash.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";
const SOURCE: &str = "kubernetes.io/config.source";
/// As the original reads at most.
const LONGEST_MANIFEST: u64 = 10 << 20;
/// An editor writes in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// The folder is read so often, whatever its watch says; the original has no watch to rely on everywhere, and reads
/// it every 20 s.
const READ_EVERY: Duration = Duration::from_secs(60);
/// Of a static pod's UID.
const UID_BYTES: usize = 16;

/// Whether the pod came from a manifest.
pub fn is_static(pod: &Pod) -> bool {
    pod.annotations()
        .get(SOURCE)
        .is_some_and(|source| source != "api")
}

/// Takes away what a pod of the API says of where it comes from: it would count as a static one.
pub fn disown(pod: &mut Pod) {
    if is_static(pod) {
        pod.annotations_mut().remove(SOURCE);
    }
}

pub fn is_mirror(pod: &Pod) -> bool {
    pod.annotations().contains_key(MIRROR)
}

/// The hash by which a mirror pod and its static pod know each other.
pub fn hash(pod: &Pod) -> Option<&str> {
    let annotations = pod.annotations();
    let hash = annotations.get(MIRROR).or_else(|| annotations.get(HASH));
    hash.map(String::as_str)
}

/// The object that shows the static pod in the API. It is its Node's, and goes with it.
pub fn mirror(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    mirror.metadata.owner_references = node.controller_owner_ref(&()).map(|mut owner| {
        owner.block_owner_deletion = None;
        vec![owner]
    });
    let hash = hash(pod).unwrap_or_default().to_owned();
    mirror.annotations_mut().insert(MIRROR.into(), hash);
    mirror.metadata.uid = None;
    mirror.metadata.creation_timestamp = None;
    mirror.status = None;
    mirror
}

/// Whether a pod with this UID is a static one: the API's have dashes.
pub fn is_static_uid(uid: &str) -> bool {
    uid.len() == 2 * UID_BYTES && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Sends the folder's pods at first and after every change, until nobody listens. A folder that
/// cannot be read says nothing, so its pods go on.
pub async fn watch(folder: PathBuf, node: String, changes: Sender) {
    if let Err(error) = fs::create_dir_all(&folder) {
        tracing::warn!(folder = %folder.display(), %error, "the folder of manifests is not made");
    }
    let mut watch = FolderWatch::new(folder.clone());
    let mut known = Known::default();
    let mut sent = None;
    loop {
        // First the watch, then the look: nothing that happens in between is missed.
        watch.renew();
        (known, sent) = match read(folder.clone(), node.clone(), known).await {
            (known, Ok(pods)) => {
                let uids: Vec<_> = pods.iter().map(ResourceExt::uid).collect();
                if sent.as_ref() != Some(&uids) {
                    let list = (Source::Static, Change::List(pods));
                    if changes.send(list).await.is_err() {
                        return;
                    }
                }
                (known, Some(uids))
            }
            (known, Err(error)) => {
                tracing::warn!(%error, folder = %folder.display(), "manifests not read, will retry");
                (known, sent)
            }
        };
        if changes.is_closed() {
            return;
        }
        if tokio::time::timeout_at(ticks::after(READ_EVERY), watch.changed())
            .await
            .is_ok()
        {
            tokio::time::sleep(SETTLE).await;
        }
    }
}

/// What each file said when it was read last.
type Known = BTreeMap<PathBuf, Pod>;

async fn read(folder: PathBuf, node: String, known: Known) -> (Known, io::Result<Vec<Pod>>) {
    let kept = known.clone();
    let read = tokio::task::spawn_blocking(move || read_folder(&folder, &node, known));
    match read.await {
        Ok(Ok(known)) => {
            let pods = known.values().cloned().collect();
            (known, Ok(pods))
        }
        Ok(Err(error)) => (kept, Err(error)),
        Err(error) => (kept, Err(error.into())),
    }
}

/// The pod of each file. One that cannot be read says what it said before; one that is no pod, or is
/// not there, says none.
fn read_folder(folder: &Path, node: &str, mut before: Known) -> io::Result<Known> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::new()),
        entries => entries?,
    };
    let files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    let mut known = Known::new();
    for file in files {
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        if file.is_dir() || file.file_name().is_some_and(hidden) {
            continue;
        }
        match read_manifest(&file).map(|text| parse(&text, node)) {
            Ok(Ok(pod)) => drop(known.insert(file, pod)),
            Ok(Err(reason)) => {
                tracing::warn!(file = %file.display(), reason, "not a pod that can run here");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "manifest not read");
                if let Some(pod) = before.remove(&file) {
                    known.insert(file, pod);
                }
            }
        }
    }
    Ok(known)
}

fn read_manifest(file: &Path) -> io::Result<String> {
    let bytes = files::read_file_at_most(&files::open_following(file)?, LONGEST_MANIFEST)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A manifest as a pod of this node, with name, UID and annotations of a static one.
fn parse(text: &str, node: &str) -> Result<Pod, String> {
    // By way of JSON: the YAML reader made for each type of a pod is 3 MB of program.
    let manifest: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let mut pod: Pod = serde_json::from_value(manifest).map_err(|error| error.to_string())?;
    let digest = Sha256::digest(format!("{node}\n{text}").as_bytes());
    let hash = hex(&digest[..UID_BYTES]);
    let name = pod.metadata.name.clone().unwrap_or_default();
    if name.is_empty() {
        return Err("it has no name".into());
    }
    let spec = pod.spec.as_mut().ok_or("it has no spec")?;
    if let Some(what) = refers_to_api(spec) {
        return Err(format!("a static pod may not refer to {what}"));
    }
    spec.node_name = Some(node.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.enable_service_links.get_or_insert(true);
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    pod.metadata.name = Some(format!("{name}-{node}"));
    pod.metadata
        .namespace
        .get_or_insert_with(|| "default".into());
    pod.metadata.uid = Some(hash.clone());
    let seen = Timestamp::now().to_string();
    let annotations = pod.annotations_mut();
    annotations.insert(HASH.into(), hash);
    annotations.insert(SEEN.into(), seen);
    annotations.insert(SOURCE.into(), "file".into());
    annotations.remove(MIRROR);
    Ok(pod)
}

/// What a pod that must run without an API server cannot have.
fn refers_to_api(spec: &k8s_openapi::api::core::v1::PodSpec) -> Option<&'static str> {
    if spec
        .service_account_name
        .as_deref()
        .is_some_and(|name| !name.is_empty())
    {
        return Some("a service account");
    }
    for volume in spec.volumes.iter().flatten() {
        if volume.secret.is_some() {
            return Some("secrets");
        }
        if volume.config_map.is_some() {
            return Some("config maps");
        }
        if volume.persistent_volume_claim.is_some() {
            return Some("persistent volume claims");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: i}]}\n";
        let pod = parse(text, "n1").unwrap();
        assert_eq!(pod.name_any(), "web-n1");
        assert_eq!(pod.namespace().as_deref(), Some("default"));
        assert!(is_static(&pod) && !is_mirror(&pod));
        assert_eq!(pod.uid(), parse(text, "n1").unwrap().uid());
        assert!(is_static_uid(&pod.uid().unwrap()));
        assert!(!is_static_uid("d6f6c8de-4d3c-4f9c-8f4e-5e5a1d0f9b7a"));
        assert_ne!(pod.uid(), parse(text, "n2").unwrap().uid());
        let mut node = Node::default();
        node.metadata.name = Some("n1".into());
        node.metadata.uid = Some("u".into());
        let mirror = mirror(&pod, &node);
        assert!(is_mirror(&mirror) && mirror.uid().is_none());
        let owners = mirror.metadata.owner_references.as_deref().unwrap();
        let owner = serde_json::to_value(owners).unwrap();
        let want = serde_json::json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true}]);
        assert_eq!(owner, want);
        assert_eq!(hash(&mirror), hash(&pod));
        let secret = text.replace(
            "spec: {",
            "spec: {volumes: [{name: s, secret: {secretName: x}}], ",
        );
        assert!(parse(&secret, "n1").unwrap_err().contains("secrets"));
        assert!(parse("kind: Pod", "n1").is_err());
    }

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec: {containers: [{name: a, image: i}]}\n";

    fn manifest(name: &str) -> String {
        MANIFEST.replace("NAME", name)
    }

    #[test]
    fn what_cannot_be_read_says_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let names =
            |known: &Known| -> Vec<String> { known.values().map(|pod| pod.name_any()).collect() };
        fs::write(at("a.yaml"), manifest("a")).unwrap();
        fs::write(at("b.yaml"), manifest("b")).unwrap();
        let known = read_folder(folder.path(), "n", Known::new()).unwrap();
        assert_eq!(names(&known), ["a-n", "b-n"]);
        // Too large to be read.
        let large = fs::File::create(at("a.yaml")).unwrap();
        large.set_len(LONGEST_MANIFEST + 1).unwrap();
        let known = read_folder(folder.path(), "n", known).unwrap();
        assert_eq!(names(&known), ["a-n", "b-n"]);
        fs::write(at("a.yaml"), "not: a pod").unwrap();
        fs::remove_file(at("b.yaml")).unwrap();
        let known = read_folder(folder.path(), "n", known).unwrap();
        assert_eq!(names(&known), [""; 0]);
        // A folder that is none is an error, one that is not there is empty.
        assert!(read_folder(&at("a.yaml"), "n", Known::new()).is_err());
        assert!(read_folder(&at("none"), "n", known).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_or_unreadable() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("manifests");
        let (sender, mut changes) = crate::kubelet::sources::channel();
        let watching = tokio::spawn(watch(folder.clone(), "n".into(), sender));
        let mut next = async || -> Vec<String> {
            let change = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await;
            match change.expect("it is noticed").unwrap() {
                (Source::Static, Change::List(pods)) => {
                    pods.iter().map(ResourceExt::name_any).collect()
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(next().await, [""; 0]);
        fs::write(folder.join("a.yaml"), manifest("a")).unwrap();
        assert_eq!(next().await, ["a-n"]);
        // Another folder in its place.
        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("b.yaml"), manifest("b")).unwrap();
        fs::rename(&folder, root.path().join("aside")).unwrap();
        fs::rename(&other, &folder).unwrap();
        assert_eq!(next().await, ["b-n"]);
        fs::write(folder.join("c.yaml"), manifest("c")).unwrap();
        assert_eq!(next().await, ["b-n", "c-n"]);
        // It cannot be read: nothing is said, and what comes later is.
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "a file").unwrap();
        tokio::time::sleep(4 * SETTLE).await;
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("d.yaml"), manifest("d")).unwrap();
        let mut seen = next().await;
        if seen.is_empty() {
            seen = next().await; // it was not there for a moment
        }
        assert_eq!(seen, ["d-n"]);
        watching.abort();
    }
}
