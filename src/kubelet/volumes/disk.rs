//! Which of a pod's files count as its use of the node's disk.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use super::{collect::folder_name, make};

/// Volumes that end with the pod and lie on disk; those that may be limited with their names.
pub fn on_node_disk(pod: &Pod, folder: &Path) -> Vec<(Option<String>, PathBuf)> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let place = make::place(folder, folder_name(volume)?, &volume.name);
            let on_disk = |medium: Option<&str>| medium.unwrap_or_default().is_empty();
            match (&volume.empty_dir, &volume.config_map) {
                (Some(wanted), _) if on_disk(wanted.medium.as_deref()) => {
                    Some((Some(volume.name.clone()), place))
                }
                (_, Some(_)) => Some((None, place)),
                _ => None,
            }
        })
        .collect()
}

/// Files that the node keeps for the pod's containers, which may write to them.
pub fn managed_files(folder: &Path) -> Vec<PathBuf> {
    ["etc-hosts", "hostname", "resolv.conf", "containers"]
        .map(|name| folder.join(name))
        .into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_counts() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [],
            "volumes": [
                {"name": "scratch", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
                {"name": "map", "configMap": {"name": "m"}},
                {"name": "secret", "secret": {"secretName": "s"}},
                {"name": "host", "hostPath": {"path": "/"}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
            ],
        }}))
        .unwrap();
        let found = on_node_disk(&pod, Path::new("/p"));
        let names: Vec<Option<&str>> = found.iter().map(|(name, _)| name.as_deref()).collect();
        assert_eq!(names, [Some("scratch"), None]);
        assert!(
            found[0]
                .1
                .ends_with("volumes/kubernetes.io~empty-dir/scratch")
        );
    }
}
