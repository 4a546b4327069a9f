//! What a set of replicas needs next: which pods to make or delete, and the counts. Pure.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;

use super::rank::first_to_go;
use crate::controllers::pods::{self, Availability};

/// At most this many pods are made or deleted in one sync.
pub const BURST: usize = 500;

/// A ReplicaSet or ReplicationController, reduced to what decides.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub replicas: usize,
    /// Labels of the template: a pod that has them all is "fully labelled".
    pub template_labels: std::collections::BTreeMap<String, String>,
    pub min_ready_seconds: i32,
    pub terminating: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
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
        Wanted {
            replicas,
            template_labels: [("app".to_owned(), "a".to_owned())].into(),
            min_ready_seconds: 0,
            terminating: false,
        }
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
