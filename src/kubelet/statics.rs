//! Static pods: manifests in a folder on the node, run with or without an API server.
//!
//! Owns the watch of the folder and the pods' names and UIDs. The kubelet's loop runs them like
//! others and shows each in the API as a mirror pod.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Node, Pod, Toleration},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sha2::{Digest, Sha256};
use tokio::net::unix::pipe;

use super::sources::{Change, Sender, Source};
use crate::runtime::files;

/// Says that a pod in the API stands for a static one; the value is that one's hash.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";
const SOURCE: &str = "kubernetes.io/config.source";
/// As the original reads at most.
const LONGEST_MANIFEST: u64 = 10 << 20;
/// An editor writes in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// If the folder cannot be watched it is read so often.
const READ_EVERY: Duration = Duration::from_secs(20);

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

/// Sends the folder's pods at first and after every change, until nobody listens.
pub async fn watch(folder: PathBuf, node: String, changes: Sender) {
    let watch = match inotify(&folder) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "manifests are read now and then");
            None
        }
    };
    loop {
        let pods = read(folder.clone(), node.clone()).await;
        if changes
            .send((Source::Static, Change::List(pods)))
            .await
            .is_err()
        {
            return;
        }
        match &watch {
            Some(watch) => {
                changed(watch).await;
                tokio::time::sleep(SETTLE).await;
            }
            None => tokio::time::sleep(READ_EVERY).await,
        }
    }
}

fn inotify(folder: &Path) -> io::Result<pipe::Receiver> {
    fs::create_dir_all(folder)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(folder, flags)?;
    // Not a pipe, but read like one.
    pipe::Receiver::from_owned_fd_unchecked(inotify.into())
}

/// Waits for something to happen and takes all there is; what it was does not matter.
async fn changed(watch: &pipe::Receiver) {
    let mut buffer = [0; 4096];
    if watch.readable().await.is_err() {
        return tokio::time::sleep(READ_EVERY).await;
    }
    while watch.try_read(&mut buffer).is_ok_and(|length| length > 0) {}
}

async fn read(folder: PathBuf, node: String) -> Vec<Pod> {
    let read = tokio::task::spawn_blocking(move || read_folder(&folder, &node)).await;
    match read {
        Ok(Ok(pods)) => pods,
        Ok(Err(error)) => {
            tracing::warn!(%error, "manifests not read");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn read_folder(folder: &Path, node: &str) -> io::Result<Vec<Pod>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    files.sort();
    let mut pods = Vec::new();
    for file in files {
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        if file.is_dir() || file.file_name().is_some_and(hidden) {
            continue;
        }
        match read_manifest(&file).map(|text| parse(&text, node)) {
            Ok(Ok(pod)) => pods.push(pod),
            Ok(Err(reason)) => {
                tracing::warn!(file = %file.display(), reason, "not a pod that can run here");
            }
            Err(error) => tracing::warn!(file = %file.display(), %error, "manifest not read"),
        }
    }
    Ok(pods)
}

fn read_manifest(file: &Path) -> io::Result<String> {
    let bytes = files::read_file_at_most(&files::open_following(file)?, LONGEST_MANIFEST)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A manifest as a pod of this node, with name, UID and annotations of a static one.
fn parse(text: &str, node: &str) -> Result<Pod, String> {
    let mut pod: Pod = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let digest = Sha256::digest(format!("{node}\n{text}").as_bytes());
    let hash: String = digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
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
}
