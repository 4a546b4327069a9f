//! What to tell whoever makes a namespace stricter: which of its pods do not meet the new standard.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Exemptions,
    checks::{self, Pod},
    policy::Standard,
};
use crate::apiserver::registry::kinds::value::text;

/// No more pods are looked at,
const MOST_PODS: usize = 3000;
/// and no longer.
const MOST_TIME: Duration = Duration::from_secs(1);

/// Warnings, the same for many pods said once. Takes a while: not for an async worker.
pub fn warnings(
    namespace: &str,
    standard: Standard,
    exemptions: &Exemptions,
    pods: &[Arc<Value>],
) -> Vec<String> {
    let deadline = Instant::now() + MOST_TIME;
    // The first pod's name, and how many there are, for each list of reasons.
    let mut found: BTreeMap<String, (&str, usize)> = BTreeMap::new();
    let mut checked = 0;
    for pod in pods.iter().take(MOST_PODS) {
        checked += 1;
        if !exemptions.exempt_class(pod) {
            let violations = checks::violations(standard, &Pod(pod));
            if !violations.is_empty() {
                let name = text(pod, "metadata.name");
                let entry = found.entry(checks::reasons(&violations));
                let (first, count) = entry.or_insert((name, 0));
                *first = name.min(*first);
                *count += 1;
            }
        }
        if Instant::now() > deadline {
            break;
        }
    }
    let mut warnings = Vec::new();
    if checked < pods.len() {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {} existing pods",
            pods.len()
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""
        ));
    }
    let mut each: Vec<String> = found
        .into_iter()
        .map(|(reasons, (first, count))| match count {
            1 => format!("{first}: {reasons}"),
            2 => format!("{first} (and 1 other pod): {reasons}"),
            _ => format!("{first} (and {} other pods): {reasons}", count - 1),
        })
        .collect();
    each.sort();
    warnings.extend(each);
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::pod_security::policy::{Level, Version};
    use serde_json::json;

    #[test]
    fn pods_with_the_same_reasons_are_one_warning() {
        let pod =
            |name: &str, spec: Value| Arc::new(json!({"metadata": {"name": name}, "spec": spec}));
        let standard = Standard {
            level: Level::Baseline,
            version: Version::Latest,
        };
        let pods = [
            pod("b", json!({"hostPID": true})),
            pod("a", json!({"hostPID": true})),
            pod("c", json!({"hostNetwork": true})),
            pod(
                "d",
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            ),
            pod("e", json!({})),
        ];
        let found = warnings("shop", standard, &Exemptions::default(), &pods);
        assert_eq!(
            found,
            [
                "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "a (and 2 other pods): host namespaces",
                "d: hostPath volumes",
            ]
        );
        let many: Vec<Arc<Value>> = (0..MOST_PODS + 1).map(|_| pods[4].clone()).collect();
        assert_eq!(
            warnings("shop", standard, &Exemptions::default(), &many),
            [
                "new PodSecurity enforce level only checked against the first 3000 of 3001 existing pods"
            ]
        );
    }
}
