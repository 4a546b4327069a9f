//! What a set of replicas needs next: which pods it owns, which to make or delete. Pure.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{ResourceExt, core::Selector};

use super::rank::first_to_go;
use crate::controllers::pods::{self, Availability};

/// At most this many pods are made or deleted in one sync.
pub const BURST: usize = 500;

/// A ReplicaSet or ReplicationController, reduced to what decides.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub uid: String,
    pub replicas: usize,
    pub selector: Selector,
    /// Labels of the template: a pod that has them all is "fully labelled".
    pub template_labels: std::collections::BTreeMap<String, String>,
    pub min_ready_seconds: i32,
    pub terminating: bool,
}

/// A pod whose owner must be changed before it counts.
#[derive(Clone, Debug)]
pub struct Claims<'a> {
    pub owned: Vec<&'a Pod>,
    pub adopt: Vec<&'a Pod>,
    pub release: Vec<&'a Pod>,
}

/// Sorts the namespace's pods by what they are to this owner.
pub fn claim<'a>(pods: &'a [std::sync::Arc<Pod>], wanted: &Wanted) -> Claims<'a> {
    let mut claims = Claims {
        owned: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    for pod in pods.iter().map(AsRef::as_ref) {
        let matches = pods::selects(&wanted.selector, pod.metadata.labels.as_ref());
        match pods::controller_of(pod) {
            Some(owner) if owner.uid != wanted.uid => {}
            Some(_) if matches || wanted.terminating => claims.owned.push(pod),
            Some(_) => claims.release.push(pod),
            None if matches && !wanted.terminating && pods::is_active(pod) => {
                claims.adopt.push(pod);
            }
            None => {}
        }
    }
    claims
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change<'a> {
    Nothing,
    Create(usize),
    Delete(Vec<&'a Pod>),
}

/// The step from the pods `active` to the wanted number.
pub fn change<'a>(
    active: &[&'a Pod],
    related: &[&Pod],
    wanted: &Wanted,
    now: Timestamp,
) -> Change<'a> {
    if wanted.terminating {
        return Change::Nothing;
    }
    let (have, want) = (active.len(), wanted.replicas);
    if have < want {
        return Change::Create((want - have).min(BURST));
    }
    if have == want {
        return Change::Nothing;
    }
    let mut order = first_to_go(active, related, now);
    order.truncate((have - want).min(BURST));
    Change::Delete(order)
}

/// The counts of a status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

/// Counts, and when the next ready pod becomes available by staying so.
pub fn count(owned: &[&Pod], wanted: &Wanted, now: Timestamp) -> (Counts, Option<Duration>) {
    let mut counts = Counts::default();
    let mut next: Option<Duration> = None;
    for pod in owned.iter().filter(|pod| !pods::is_finished(pod)) {
        if pods::is_terminating(*pod) {
            counts.terminating += 1;
            continue;
        }
        counts.replicas += 1;
        if pods::has_labels(&wanted.template_labels, Some(pod.labels())) {
            counts.fully_labeled += 1;
        }
        match pods::availability(pod, wanted.min_ready_seconds, now) {
            Availability::NotReady => {}
            Availability::In(left) => {
                counts.ready += 1;
                next = Some(next.map_or(left, |next| next.min(left)));
            }
            Availability::Available => {
                counts.ready += 1;
                counts.available += 1;
            }
        }
    }
    (counts, next)
}

/// Sizes of the batches in which `count` pods are created: a failure in one stops the rest, so
/// that a quota that refuses is asked once and not five hundred times.
pub fn slow_start(count: usize) -> impl Iterator<Item = usize> {
    let mut left = count;
    let mut size = 1;
    std::iter::from_fn(move || {
        let batch = left.min(size);
        left -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use serde_json::json;
    use std::sync::Arc;

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

    fn wanted(replicas: usize) -> Wanted {
        let selector: LabelSelector =
            serde_json::from_value(json!({"matchLabels": {"app": "a"}})).expect("a selector");
        Wanted {
            uid: "rs".into(),
            replicas,
            selector: selector.try_into().expect("valid"),
            template_labels: [("app".to_owned(), "a".to_owned())].into(),
            min_ready_seconds: 0,
            terminating: false,
        }
    }

    fn names(pods: &[&Pod]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn pods_are_claimed_by_owner_first_and_label_second() {
        let pods = [
            pod("mine", Some("rs"), "a", "Running"),
            pod("relabelled", Some("rs"), "b", "Running"),
            pod("orphan", None, "a", "Running"),
            pod("finished-orphan", None, "a", "Succeeded"),
            pod("other", Some("rs2"), "a", "Running"),
            pod("stranger", None, "b", "Running"),
        ];
        let claims = claim(&pods, &wanted(1));
        assert_eq!(names(&claims.owned), ["mine"]);
        assert_eq!(names(&claims.adopt), ["orphan"]);
        assert_eq!(names(&claims.release), ["relabelled"]);
    }

    #[test]
    fn the_difference_is_made_or_deleted() {
        let pods = [
            pod("a", Some("rs"), "a", "Running"),
            pod("b", Some("rs"), "a", "Pending"),
        ];
        let active: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
        let now = Timestamp::UNIX_EPOCH;
        for (replicas, want) in [
            (0, Change::Delete(vec![active[1], active[0]])),
            (1, Change::Delete(vec![active[1]])),
            (2, Change::Nothing),
            (5, Change::Create(3)),
            (5000, Change::Create(BURST)),
        ] {
            assert_eq!(change(&active, &[], &wanted(replicas), now), want);
        }
    }

    #[test]
    fn batches_double() {
        // Source: slow-start of the ReplicaSet controller.
        for (count, want) in [(0, vec![]), (1, vec![1]), (20, vec![1, 2, 4, 8, 5])] {
            assert_eq!(slow_start(count).collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn ready_pods_become_available_with_time() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"app": "a"}},
            "spec": {"containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .expect("a pod");
        let mut wanted = wanted(1);
        wanted.min_ready_seconds = 30;
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (counts, next) = count(&[&pod], &wanted, at("2026-01-01T00:00:10Z"));
        assert_eq!((counts.ready, counts.available), (1, 0));
        assert_eq!(next, Some(Duration::from_secs(20)));
        let (counts, next) = count(&[&pod], &wanted, at("2026-01-01T00:00:30Z"));
        assert_eq!((counts.ready, counts.available), (1, 1));
        assert_eq!(next, None);
    }
}
