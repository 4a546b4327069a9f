//! Claims: a pod's volume by claim is the bound volume's place on this node.
//!
//! Which volume a claim gets is decided in the API (`controllers/volume`); here the answer is looked
//! up each time it is needed, so that it is never older than the pod that asks.

use std::{borrow::Cow, collections::BTreeSet, path::PathBuf};

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimVolumeSource, Pod, Volume,
};
use kube::{Api, ResourceExt};

use super::{Error, Shared, blocking};
use crate::{
    kubelet::local_volumes,
    placement::{
        local::{self, is_local},
        volumes::{ephemeral_name, is_bound, is_made_for},
    },
};

/// A pod whose claims have been replaced by what they stand for.
pub struct Resolved<'a> {
    pub pod: Cow<'a, Pod>,
    /// Volumes whose claim is for reading only.
    pub read_only: BTreeSet<String>,
    /// Its volumes that are folders of the node, and may get the pod's group.
    pub folders: Vec<Folder>,
}

/// The folder of one `local` volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// The volume's name in the pod.
    pub volume: String,
    pub persistent_volume: String,
    pub path: PathBuf,
    pub read_only: bool,
}

/// Who asks where a claim's volume lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// A pod that has none of its volumes yet.
    First,
    /// A pod that has had them: a claim that is to go stays its own.
    Again,
}

impl Shared {
    pub(super) async fn resolved<'a>(
        &self,
        pod: &'a Pod,
        asking: Asking,
    ) -> Result<Resolved<'a>, Error> {
        let mut resolved = Resolved {
            pod: Cow::Borrowed(pod),
            read_only: BTreeSet::new(),
            folders: Vec::new(),
        };
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        for (index, volume) in volumes.into_iter().flatten().enumerate() {
            let own = volume.ephemeral.is_some();
            let source = match (&volume.persistent_volume_claim, own) {
                (Some(source), _) => source.clone(),
                (None, true) => PersistentVolumeClaimVolumeSource {
                    claim_name: ephemeral_name(pod, &volume.name),
                    read_only: None,
                },
                (None, false) => continue,
            };
            let found = self.volume_of_claim(pod, &source, own, asking).await;
            let (persistent_volume, place) = found.map_err(|message| Error::Volume {
                volume: volume.name.clone(),
                message,
            })?;
            let read_only = source.read_only == Some(true);
            if read_only {
                resolved.read_only.insert(volume.name.clone());
            }
            let spec = persistent_volume.spec.as_ref();
            if spec.is_some_and(|spec| spec.local.is_some()) {
                resolved.folders.push(Folder {
                    volume: volume.name.clone(),
                    persistent_volume: persistent_volume.name_any(),
                    path: PathBuf::from(&place.path),
                    read_only,
                });
            }
            let spec = resolved.pod.to_mut().spec.as_mut();
            if let Some(slot) = spec
                .and_then(|spec| spec.volumes.as_mut())
                .and_then(|volumes| volumes.get_mut(index))
            {
                *slot = Volume {
                    name: volume.name.clone(),
                    host_path: Some(place),
                    ..Volume::default()
                };
            }
        }
        Ok(resolved)
    }

    async fn volume_of_claim(
        &self,
        pod: &Pod,
        source: &PersistentVolumeClaimVolumeSource,
        own: bool,
        asking: Asking,
    ) -> Result<(PersistentVolume, HostPathVolumeSource), String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let name = &source.claim_name;
        let claim = claims.get_opt(name).await;
        let claim = claim
            .map_err(|error| format!("read persistentvolumeclaim {name:?}: {error}"))?
            .ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
        if own && !is_made_for(pod, &claim) {
            return Err(format!(
                "persistentvolumeclaim {name:?} was not created for this pod (pod is not owner)"
            ));
        }
        if asking == Asking::First && claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let volume = bound_volume(&claim)?;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = volumes.get_opt(volume).await;
        let found = found
            .map_err(|error| format!("read persistentvolume {volume:?}: {error}"))?
            .ok_or_else(|| format!("persistentvolume {volume:?} not found"))?;
        let place = place(&claim, &found)?;
        if is_local(&found) {
            let folder = local::place(&found, &self.config.local_volumes)?;
            let made = blocking(move || Ok(local_volumes::make(&folder))).await;
            made.map_err(|error| error.to_string())??;
        }
        Ok((found, place))
    }
}

/// The phase is the last that is written of a binding: whoever waited for the binding itself, as the
/// scheduler does, may be here before. A claim that has lost its volume is still marked as bound.
fn bound_volume(claim: &PersistentVolumeClaim) -> Result<&str, String> {
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let bound = match phase.unwrap_or("Pending") {
        "Bound" => true,
        "Pending" => is_bound(claim),
        _ => false,
    };
    let volume = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref());
    match volume {
        Some(volume) if bound && !volume.is_empty() => Ok(volume),
        _ => Err(format!(
            "persistentvolumeclaim {:?} is not bound to a volume yet",
            claim.name_any()
        )),
    }
}

/// Where the volume lies on this node, if it is the claim's.
fn place(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<HostPathVolumeSource, String> {
    let name = volume.name_any();
    let spec = volume.spec.clone().unwrap_or_default();
    let holder = spec.claim_ref.and_then(|claim| claim.uid);
    if holder.is_none() || holder != claim.metadata.uid {
        return Err(format!("persistentvolume {name:?} is another claim's"));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!(
            "persistentvolume {name:?}: volumeMode Block is not supported by this version"
        ));
    }
    match (spec.host_path, spec.local) {
        (Some(place), _) => Ok(place),
        (None, Some(local)) => Ok(HostPathVolumeSource {
            path: local.path,
            type_: Some("Directory".into()),
        }),
        (None, None) => Err(format!(
            "persistentvolume {name:?}: only hostPath and local volumes are supported by this version"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bound_as_soon_as_both_name_each_other() {
        let done = json!({"pv.kubernetes.io/bind-completed": "yes"});
        for (annotations, volume, phase, want) in [
            (json!({}), "v", "Bound", true),
            (json!({}), "v", "Pending", false),
            (done.clone(), "v", "Pending", true),
            (done.clone(), "v", "Bound", true),
            (done.clone(), "v", "Lost", false),
            (done, "", "Pending", false),
        ] {
            let claim = serde_json::from_value(json!({"metadata": {"annotations": annotations},
                "spec": {"volumeName": volume}, "status": {"phase": phase}}));
            assert_eq!(bound_volume(&claim.unwrap()).is_ok(), want, "{phase}");
        }
    }

    #[test]
    fn only_the_claims_own_volume_of_a_known_kind() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c", "uid": "u"}})).unwrap();
        assert!(bound_volume(&claim).unwrap_err().contains("not bound"));
        for (spec, want) in [
            (
                json!({"claimRef": {"uid": "u"}, "hostPath": {"path": "/a"}}),
                Ok("/a"),
            ),
            (
                json!({"claimRef": {"uid": "u"}, "local": {"path": "/b"}}),
                Ok("/b"),
            ),
            (
                json!({"claimRef": {"uid": "v"}, "hostPath": {"path": "/a"}}),
                Err("another"),
            ),
            (json!({"hostPath": {"path": "/a"}}), Err("another")),
            (
                json!({"claimRef": {"uid": "u"}, "nfs": {"path": "/a", "server": "s"}}),
                Err("only hostPath and local"),
            ),
            (
                json!({"claimRef": {"uid": "u"}, "local": {"path": "/b"}, "volumeMode": "Block"}),
                Err("Block"),
            ),
        ] {
            let volume = json!({"metadata": {"name": "v"}, "spec": spec});
            let got = place(&claim, &serde_json::from_value(volume).unwrap());
            match want {
                Ok(path) => assert_eq!(got.unwrap().path, path),
                Err(text) => assert!(got.unwrap_err().contains(text), "{spec}"),
            }
        }
    }
}
