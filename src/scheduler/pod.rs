//! A pod as the scheduler sees it: everything that rules ask for, worked out once. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Affinity, Pod, PodAffinityTerm, PodSpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    ResourceExt,
    core::{Expression, Selector, SelectorExt},
};

use crate::{
    informer::Key,
    placement::{HostPort, Requests, host_ports, volumes::claim_names},
};

/// Pods near which, or far from which, another one wants to be.
#[derive(Clone, Debug)]
pub struct Term {
    pub topology_key: String,
    selector: Option<Selector>,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
}

impl Term {
    /// True if `pod` is one of those meant. `labels_of` tells the labels of a namespace.
    pub fn matches(
        &self,
        pod: &PodInfo,
        labels_of: &dyn Fn(&str) -> Option<BTreeMap<String, String>>,
    ) -> bool {
        let Some(selector) = &self.selector else {
            return false; // no selector means no pod
        };
        if !selector.matches(pod.pod.labels()) {
            return false;
        }
        self.namespaces.contains(&pod.key.namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.selects_all()
                    || labels_of(&pod.key.namespace).is_some_and(|labels| selector.matches(&labels))
            })
    }
}

#[derive(Clone, Debug)]
pub struct Weighted {
    pub term: Term,
    /// Negative for anti-affinity.
    pub weight: i64,
}

/// What a pod goes by here: another pod may come under its name.
pub type Uid = Arc<str>;

#[derive(Clone, Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub uid: Uid,
    /// For requests and logs.
    pub key: Key,
    pub priority: i32,
    pub requests: Requests,
    pub ports: Vec<HostPort>,
    /// Names of its claims, and whether each is made for it alone.
    pub claims: Vec<(String, bool)>,
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    pub preferred: Vec<Weighted>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let terms = spec.affinity.clone().unwrap_or_default();
        let (affinity, anti_affinity, preferred) = affinity_terms(&pod, terms);
        Self {
            uid: uid_of(&pod),
            key: Key::of(pod.as_ref()),
            priority: spec.priority.unwrap_or(0),
            requests: Requests::of(&pod),
            ports: host_ports(&spec),
            claims: claim_names(&pod),
            affinity,
            anti_affinity,
            preferred,
            pod,
        }
    }

    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// The node that its status says it was promised.
    pub fn nominated(&self) -> Option<&str> {
        nominated(&self.pod)
    }

    pub fn has_affinity(&self) -> bool {
        !self.affinity.is_empty() || !self.anti_affinity.is_empty() || !self.preferred.is_empty()
    }

    pub fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }
}

/// The node that a pod's status says it was promised.
pub fn nominated(pod: &Pod) -> Option<&str> {
    let named = pod.status.as_ref()?.nominated_node_name.as_deref();
    named.filter(|name| !name.is_empty())
}

pub fn uid_of(pod: &Pod) -> Uid {
    pod.metadata.uid.as_deref().unwrap_or_default().into()
}

fn affinity_terms(pod: &Pod, affinity: Affinity) -> (Vec<Term>, Vec<Term>, Vec<Weighted>) {
    let near = affinity.pod_affinity.unwrap_or_default();
    let far = affinity.pod_anti_affinity.unwrap_or_default();
    let terms = |terms: Option<Vec<PodAffinityTerm>>| -> Vec<Term> {
        terms
            .into_iter()
            .flatten()
            .filter_map(|one| term(pod, one))
            .collect()
    };
    let mut preferred = Vec::new();
    for (list, sign) in [
        (near.preferred_during_scheduling_ignored_during_execution, 1),
        (far.preferred_during_scheduling_ignored_during_execution, -1),
    ] {
        preferred.extend(list.into_iter().flatten().filter_map(|one| {
            Some(Weighted {
                term: term(pod, one.pod_affinity_term)?,
                weight: sign * i64::from(one.weight),
            })
        }));
    }
    (
        terms(near.required_during_scheduling_ignored_during_execution),
        terms(far.required_during_scheduling_ignored_during_execution),
        preferred,
    )
}

/// `None` for a selector that validation would not have let in.
fn term(pod: &Pod, term: PodAffinityTerm) -> Option<Term> {
    let mut selector = parse(term.label_selector)?;
    if let Some(selector) = &mut selector {
        for (keys, same) in [
            (&term.match_label_keys, true),
            (&term.mismatch_label_keys, false),
        ] {
            for key in keys.iter().flatten() {
                if let Some(value) = pod.labels().get(key) {
                    let values = BTreeSet::from([value.clone()]);
                    selector.extend([if same {
                        Expression::In(key.clone(), values)
                    } else {
                        Expression::NotIn(key.clone(), values)
                    }]);
                }
            }
        }
    }
    let namespace_selector = parse(term.namespace_selector)?;
    let mut namespaces: BTreeSet<String> = term.namespaces.into_iter().flatten().collect();
    if namespaces.is_empty() && namespace_selector.is_none() {
        namespaces.extend(pod.namespace());
    }
    Some(Term {
        topology_key: term.topology_key,
        selector,
        namespaces,
        namespace_selector,
    })
}

fn parse(selector: Option<LabelSelector>) -> Option<Option<Selector>> {
    match selector {
        None => Some(None),
        Some(selector) => Selector::try_from(selector).ok().map(Some),
    }
}
