//! The claims for volumes of a StatefulSet's pods: their names stay with the ordinal, and so does
//! what they hold. Pure.
//!
//! A claim outlives its pod. What ends it is an owner, which the set's retention policy gives it: the
//! set itself (`whenDeleted: Delete`), or the pod that is scaled away (`whenScaled: Delete`).

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{
            PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodSpec, Volume,
        },
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::ResourceExt;

use super::plan;
use crate::controllers::pods;

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec
        .volume_claim_templates
        .as_deref()
        .unwrap_or_default()
}

fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

/// Whether a claim of this name would be one of the set's.
pub fn is_of(set: &StatefulSet, claim: &str) -> bool {
    let name = set.name_any();
    templates(set).iter().any(|template| {
        let template = format!("{}-", template.name_any());
        let pod = claim.strip_prefix(&template);
        pod.is_some_and(|pod| plan::ordinal(&name, pod).is_some())
    })
}

/// The claims that `pod` is to have.
pub fn wanted(set: &StatefulSet, pod: &str) -> Vec<PersistentVolumeClaim> {
    let labels = set.spec.selector.match_labels.clone().unwrap_or_default();
    let one = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(template, pod));
        claim.metadata.namespace = set.namespace();
        claim.labels_mut().extend(labels.clone());
        claim.metadata.owner_references = owners(set, &claim, None);
        claim.status = None;
        claim
    };
    templates(set).iter().map(one).collect()
}

/// Gives a pod its claims as volumes, in the place of volumes with the templates' names.
pub fn mount(set: &StatefulSet, pod: &str, spec: &mut PodSpec) {
    let claims = templates(set).iter().map(|template| Volume {
        name: template.name_any(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(template, pod),
            read_only: Some(false),
        }),
        ..Volume::default()
    });
    let mut volumes: Vec<Volume> = claims.collect();
    let others = spec.volumes.take().unwrap_or_default().into_iter();
    let is_claim = |volume: &Volume| {
        templates(set)
            .iter()
            .any(|one| one.name_any() == volume.name)
    };
    volumes.extend(others.filter(|volume| !is_claim(volume)));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
}

/// The claim with the owners that the retention policy wants, if it has not got them. `pod` is the
/// claim's.
pub fn reowned(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    pod: &Pod,
) -> Option<PersistentVolumeClaim> {
    let wanted = owners(set, claim, Some(pod));
    (wanted != claim.metadata.owner_references).then(|| {
        let mut claim = claim.clone();
        claim.metadata.owner_references = wanted;
        claim
    })
}

/// Owners that others gave it stay.
fn owners(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    pod: Option<&Pod>,
) -> Option<Vec<OwnerReference>> {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let says = |text: Option<&String>| text.is_some_and(|text| text == "Delete");
    let when_deleted = says(policy.and_then(|policy| policy.when_deleted.as_ref()));
    let when_scaled = says(policy.and_then(|policy| policy.when_scaled.as_ref()));
    let condemned = pod.filter(|pod| when_scaled && is_condemned(set, pod));
    let mut owners = claim.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| {
        let by_pod = pod.is_some_and(|pod| owner.kind == "Pod" && owner.name == pod.name_any());
        !by_pod && Some(&owner.uid) != set.uid().as_ref()
    });
    match condemned {
        Some(pod) => owners.push(pods::controller_ref(pod)),
        None if when_deleted => owners.push(pods::controller_ref(set)),
        None => {}
    }
    (!owners.is_empty()).then_some(owners)
}

/// Whether the set has grown too small for the pod.
fn is_condemned(set: &StatefulSet, pod: &Pod) -> bool {
    let start = set.spec.ordinals.as_ref().and_then(|one| one.start);
    let start = start.unwrap_or(0);
    let end = start.saturating_add(set.spec.replicas.unwrap_or(1));
    plan::ordinal(&set.name_any(), &pod.name_any())
        .is_some_and(|ordinal| !(start..end).contains(&ordinal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "w", "namespace": "n", "uid": "set"},
            "spec": {
                "replicas": 2, "serviceName": "s", "template": {},
                "selector": {"matchLabels": {"app": "w"}},
                "persistentVolumeClaimRetentionPolicy":
                    {"whenDeleted": deleted, "whenScaled": scaled},
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Pending"}}],
            },
        }))
        .expect("a StatefulSet")
    }

    fn pod(name: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name}})).expect("a pod")
    }

    #[test]
    fn claims_are_named_after_template_and_pod() {
        let set = set("Retain", "Retain");
        let claims = serde_json::to_value(wanted(&set, "w-1")).expect("plain");
        assert_eq!(
            claims[0]["metadata"],
            json!({"name": "data-w-1", "namespace": "n", "labels": {"a": "b", "app": "w"}})
        );
        assert!(claims[0]["status"].is_null());
        for (name, want) in [
            ("data-w-0", true),
            ("data-w-17", true),
            ("data-w-01", false),
            ("data-v-0", false),
            ("w-0", false),
        ] {
            assert_eq!(is_of(&set, name), want, "{name}");
        }
    }

    #[test]
    fn a_claim_takes_the_place_of_a_volume() {
        let mut spec: PodSpec = serde_json::from_value(json!({"containers": [], "volumes": [
            {"name": "tmp", "emptyDir": {}}, {"name": "data", "emptyDir": {}}]}))
        .expect("a spec");
        mount(&set("Retain", "Retain"), "w-0", &mut spec);
        let volumes = serde_json::to_value(spec.volumes).expect("plain");
        let claim = json!({"claimName": "data-w-0", "readOnly": false});
        assert_eq!(
            volumes,
            json!([{"name": "data", "persistentVolumeClaim": claim},
                {"name": "tmp", "emptyDir": {}}])
        );
    }

    #[test]
    fn owners_follow_the_retention_policy() {
        // Deleted, scaled, the pod's name, who owns the claim then.
        for (deleted, scaled, name, want) in [
            ("Retain", "Retain", "w-0", &[] as &[&str]),
            ("Retain", "Retain", "w-2", &[]),
            ("Delete", "Retain", "w-2", &["set"]),
            ("Retain", "Delete", "w-1", &[]),
            ("Retain", "Delete", "w-2", &["w-2"]),
            ("Delete", "Delete", "w-1", &["set"]),
            ("Delete", "Delete", "w-2", &["w-2"]),
        ] {
            let set = set(deleted, scaled);
            let mut claim = wanted(&set, name).remove(0);
            let foreign = OwnerReference {
                uid: "other".into(),
                ..OwnerReference::default()
            };
            claim.metadata.owner_references = Some(vec![foreign, pods::controller_ref(&pod(name))]);
            let claim = reowned(&set, &claim, &pod(name)).unwrap_or(claim);
            let owners = claim.metadata.owner_references.clone().unwrap_or_default();
            let uids: Vec<&str> = owners.iter().map(|owner| &*owner.uid).collect();
            assert_eq!(
                uids,
                [&["other"], want].concat(),
                "{deleted} {scaled} {name}"
            );
            assert_eq!(reowned(&set, &claim, &pod(name)), None);
        }
    }
}
