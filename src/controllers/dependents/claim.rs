//! Which dependents belong to an owner: by reference first, by label second. Pure.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Resource, ResourceExt, core::Selector};

use super::Object;
use crate::{
    controllers::{error::Error, pods},
    informer::{Informer, Key},
};

/// An owner, reduced to what decides.
#[derive(Clone, Debug)]
pub struct Claimant {
    uid: String,
    selector: Selector,
    /// It keeps what it has and takes nothing.
    terminating: bool,
}

impl Claimant {
    pub fn new<K: Resource>(owner: &K, selector: Selector) -> Self {
        Self {
            uid: owner.uid().unwrap_or_default(),
            selector,
            terminating: pods::is_terminating(owner),
        }
    }

    /// By a selector that must have something to select by.
    pub fn by_label<K: Resource>(owner: &K, selector: LabelSelector) -> Result<Self, Error> {
        let invalid = |why: &str| Error::invalid("selector", owner.name_any(), why);
        let selector = Selector::try_from(selector).map_err(|why| invalid(&why.to_string()))?;
        if selector.selects_all() {
            return Err(invalid("it is empty"));
        }
        Ok(Self::new(owner, selector))
    }

    fn selects<D: Resource>(&self, object: &D) -> bool {
        pods::selects(&self.selector, object.meta().labels.as_ref())
    }
}

/// What dependents are to an owner.
#[derive(Clone, Debug)]
pub struct Claims<D> {
    pub owned: Vec<Arc<D>>,
    pub adopt: Vec<Arc<D>>,
    pub release: Vec<Arc<D>>,
}

impl<D> Claims<D> {
    /// All that are the owner's once the claims are carried out.
    pub fn held(self) -> Vec<Arc<D>> {
        let mut held = self.owned;
        held.extend(self.adopt);
        held
    }
}

/// Sorts `objects`; orphans that are not `adoptable` are left alone.
pub fn claim<D: Resource>(
    objects: Vec<Arc<D>>,
    claimant: &Claimant,
    adoptable: impl Fn(&D) -> bool,
) -> Claims<D> {
    let mut claims = Claims {
        owned: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    for object in objects {
        let matches = claimant.selects(object.as_ref());
        match pods::controller_of(object.as_ref()) {
            Some(owner) if owner.uid != claimant.uid => {}
            Some(_) if matches || claimant.terminating => claims.owned.push(object),
            Some(_) => claims.release.push(object),
            None if matches && !claimant.terminating && adoptable(&object) => {
                claims.adopt.push(object);
            }
            None => {}
        }
    }
    claims
}

/// The owner that an object names; for an orphan, all that could adopt it.
pub fn owners_of<D: Object, K: Object>(
    object: &D,
    owners: &Informer<K>,
    claimant: impl Fn(&K) -> Option<Claimant>,
) -> Vec<Key> {
    let namespace = object.namespace().unwrap_or_default();
    if pods::controller_of(object).is_some() {
        let name = pods::controller_named(object, &K::group(&()), &K::kind(&()));
        return name
            .map(|name| Key::new(namespace, name))
            .into_iter()
            .collect();
    }
    let all = owners.list_in(&namespace);
    let adopters = all.iter().filter(|owner| {
        let claimant = claimant(owner.as_ref());
        claimant.is_some_and(|claimant| claimant.selects(object))
    });
    adopters.map(|owner| Key::of(owner.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
    use serde_json::{Value, json};

    fn pod(name: &str, owner: Option<&str>, label: &str, phase: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "labels": {"app": label},
                    "ownerReferences": owner.map(|uid| json!([{"apiVersion": "apps/v1",
                        "kind": "ReplicaSet", "name": uid, "uid": uid, "controller": true}]))},
                "spec": {"containers": []},
                "status": {"phase": phase},
            }))
            .expect("a pod"),
        )
    }

    fn claims(deleted: Value) -> Claims<Pod> {
        let owner: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "rs", "uid": "rs", "deletionTimestamp": deleted},
            "spec": {"selector": {}},
        }))
        .expect("a ReplicaSet");
        let selector: LabelSelector =
            serde_json::from_value(json!({"matchLabels": {"app": "a"}})).expect("a selector");
        let claimant = Claimant::by_label(&owner, selector).expect("valid");
        let pods = vec![
            pod("mine", Some("rs"), "a", "Running"),
            pod("relabelled", Some("rs"), "b", "Running"),
            pod("orphan", None, "a", "Running"),
            pod("finished-orphan", None, "a", "Succeeded"),
            pod("other", Some("rs2"), "a", "Running"),
            pod("stranger", None, "b", "Running"),
        ];
        claim(pods, &claimant, pods::is_active)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn dependents_are_claimed_by_owner_first_and_label_second() {
        let claims = claims(Value::Null);
        assert_eq!(names(&claims.owned), ["mine"]);
        assert_eq!(names(&claims.adopt), ["orphan"]);
        assert_eq!(names(&claims.release), ["relabelled"]);
        assert_eq!(names(&claims.held()), ["mine", "orphan"]);
    }

    #[test]
    fn who_is_being_deleted_keeps_what_it_has() {
        let claims = claims(json!("2026-01-01T00:00:00Z"));
        assert_eq!(names(&claims.owned), ["mine", "relabelled"]);
        assert!(claims.adopt.is_empty() && claims.release.is_empty());
    }
}
