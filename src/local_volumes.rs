//! What a volume of the class `local` looks like: a folder on one node, made and removed by that node.
//!
//! The controller that writes the volume's object and the node that keeps its folder agree on this, and
//! on nothing else. Pure.
//! Always true: a folder's name says which claim it was made for and ends with the claim's uid; no part
//! of it can lead elsewhere.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;

/// The class that every new cluster has.
pub const CLASS: &str = "local";
pub const PROVISIONER: &str = "vetch.io/local";
/// On a Node: the folder below which its volumes lie.
pub const FOLDER: &str = "vetch.io/local-volumes";
/// On a volume: its node has made the folder, so it must be there from now on.
pub const MADE: &str = "vetch.io/local-volume-made";
/// Holds a volume's object until its node has done with the folder what the reclaim policy says.
pub const FINALIZER: &str = "vetch.io/local-volume";
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub const HOSTNAME: &str = "kubernetes.io/hostname";

/// The longest name that file systems take.
const NAME_MAX: usize = 255;

/// The name of the folder for a claim.
pub fn folder_name(namespace: &str, claim: &str, uid: &str) -> String {
    // The uid alone tells folders apart; the rest is for people who look at them.
    let room = NAME_MAX.saturating_sub(namespace.len() + uid.len() + 2);
    let shown: String = claim.chars().take(room).collect();
    format!("{namespace}-{shown}-{uid}")
}

/// Whether the provisioner of the class `local` has made it.
pub fn is_ours(volume: &PersistentVolume) -> bool {
    volume
        .annotations()
        .get(PROVISIONED_BY)
        .is_some_and(|by| by == PROVISIONER)
}

/// Whether its node has made its folder.
pub fn is_made(volume: &PersistentVolume) -> bool {
    volume.annotations().contains_key(MADE)
}

/// The volume's folder, if it is one of those right below `root`.
pub fn place(volume: &PersistentVolume, root: &Path) -> Result<PathBuf, String> {
    let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
    let path = Path::new(local.map_or("", |local| &local.path));
    let wrong = || {
        format!(
            "persistentvolume {:?}: {:?} is no folder of this node's volumes in {}",
            volume.name_any(),
            path.display(),
            root.display()
        )
    };
    let below = path.strip_prefix(root).map_err(|_| wrong())?;
    let mut parts = below.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(root.join(name)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_plain_and_short_enough() {
        let uid = "0b0e3a5c-7a55-4dc4-a2a5-0c4a2a5f3f10";
        let name = folder_name("shop", "data-db-0", uid);
        assert_eq!(name, format!("shop-data-db-0-{uid}"));
        let long = folder_name(&"n".repeat(63), &"c".repeat(253), uid);
        assert_eq!(long.len(), NAME_MAX);
        assert!(long.ends_with(uid));
    }

    #[test]
    fn only_folders_right_below_the_root_are_places() {
        let root = Path::new("/var/lib/vetch/volumes");
        for (path, good) in [
            ("/var/lib/vetch/volumes/n-c-u", true),
            ("/var/lib/vetch/volumes", false),
            ("/var/lib/vetch/volumes/..", false),
            ("/var/lib/vetch/volumes/../pki", false),
            ("/var/lib/vetch/volumes/a/b", false),
            ("/var/lib/vetch/volumes2/a", false),
            ("/etc", false),
            ("", false),
        ] {
            let volume = json!({"metadata": {"name": "v"}, "spec": {"local": {"path": path}}});
            let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
            assert_eq!(super::place(&volume, root).is_ok(), good, "{path}");
        }
    }
}
