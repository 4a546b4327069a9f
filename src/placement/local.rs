//! Volumes that are folders of a node: what the controller that writes them and the node that makes the
//! folders must agree on. Pure.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;

use super::volumes::PROVISIONED_BY;

/// The provisioner that StorageClasses name.
pub const PROVISIONER: &str = "vetch.io/local";
/// Holds a volume until its node has removed the folder.
pub const FINALIZER: &str = "vetch.io/local-folder";
/// The annotation of a Node that says where its folders lie, if not where the control plane's do.
pub const FOLDERS: &str = "vetch.io/local-volumes";
/// Where the folders lie below what a daemon keeps.
pub const FOLDER: &str = "volumes";
/// The longest name that file systems take.
const NAME_MAX: usize = 255;

/// Whether the provisioner made it. One mark is enough: who takes the annotation away by mistake must not
/// leave a volume that its finalizer holds for ever.
pub fn is_local(volume: &PersistentVolume) -> bool {
    let by = volume.annotations().get(PROVISIONED_BY);
    by.is_some_and(|by| by == PROVISIONER) || volume.finalizers().iter().any(|one| one == FINALIZER)
}

/// The name of a claim's folder: unique by the uid, and for people to read.
pub fn folder_name(volume: &str, namespace: &str, claim: &str) -> String {
    let mut name = format!("{volume}_{namespace}_{claim}");
    while name.len() > NAME_MAX {
        name.pop();
    }
    name
}

/// The volume's folder, if it is one of those just below `folders`: nothing else is made or removed.
pub fn place(volume: &PersistentVolume, folders: &Path) -> Result<PathBuf, String> {
    let name = volume.name_any();
    let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
    let path = local.map(|local| local.path.as_str()).unwrap_or_default();
    let inside = path
        .strip_prefix(folders.to_str().unwrap_or_default())
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|folder| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            folder.len() <= NAME_MAX
                && folder.starts_with("pvc-")
                && folder.chars().all(plain)
                && folder.starts_with(&format!("{name}_"))
        });
    match inside {
        Some(folder) => Ok(folders.join(folder)),
        None => Err(format!(
            "persistentvolume {name:?}: local.path {path:?} is not the volume's folder below {}",
            folders.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_volumes_own_folder() {
        let long = folder_name("pvc-u", "n", &"c".repeat(253));
        assert_eq!(long.len(), NAME_MAX);
        for (path, good) in [
            ("/d/volumes/pvc-u_n_c".to_owned(), true),
            (format!("/d/volumes/{long}"), true),
            ("/d/volumes/pvc-other_n_c".to_owned(), false),
            ("/d/volumes/pvc-u_/../../etc".to_owned(), false),
            ("/d/volumes/pvc-u_n/c".to_owned(), false),
            ("/d/volumes".to_owned(), false),
            ("/d/volumes/".to_owned(), false),
            ("/d/volumesx/pvc-u_n_c".to_owned(), false),
            ("/etc".to_owned(), false),
            (String::new(), false),
        ] {
            let object = json!({"metadata": {"name": "pvc-u"}, "spec": {"local": {"path": path}}});
            let volume = serde_json::from_value(object).unwrap();
            assert_eq!(
                place(&volume, Path::new("/d/volumes")).is_ok(),
                good,
                "{path}"
            );
        }
    }
}
