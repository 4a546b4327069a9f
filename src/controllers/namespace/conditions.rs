//! What a namespace says about its own deletion. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::NamespaceCondition, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp,
};

/// What one pass over a namespace's content found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub discovery_failure: Option<String>,
    /// Resources that could not be deleted or listed, each with the error.
    pub failures: Vec<String>,
    /// `plural.group` to the number of objects that are left.
    pub remaining: BTreeMap<String, usize>,
    /// Finalizer to the number of objects that wait for it.
    pub finalizers: BTreeMap<String, usize>,
}

impl Findings {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The five conditions after a pass. `old` conditions of the same status keep their time.
pub fn conditions(
    findings: &Findings,
    old: &[NamespaceCondition],
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let failures = (!findings.failures.is_empty()).then(|| {
        format!(
            "Failed to delete all resource types, {} remaining: {}",
            findings.failures.len(),
            findings.failures.join(", ")
        )
    });
    let remaining = words(
        &findings.remaining,
        "Some resources are remaining: ",
        "has",
        "resource instances",
    );
    let finalizers = words(
        &findings.finalizers,
        "Some content in the namespace has finalizers remaining: ",
        "in",
        "resource instances",
    );
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            findings.discovery_failure.clone(),
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            failures,
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            remaining,
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    rows.into_iter()
        .map(|(kind, problem, bad, good, fine)| {
            let (status, reason, message) = match problem {
                Some(problem) => ("True", bad, problem),
                None => ("False", good, fine.to_owned()),
            };
            let since = old
                .iter()
                .find(|held| held.type_ == kind && held.status == status)
                .and_then(|held| held.last_transition_time.clone());
            NamespaceCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(since.unwrap_or(Time(now))),
            }
        })
        .collect()
}

fn words(
    counts: &BTreeMap<String, usize>,
    opening: &str,
    verb: &str,
    what: &str,
) -> Option<String> {
    if counts.is_empty() {
        return None;
    }
    let parts: Vec<String> = counts
        .iter()
        .map(|(name, count)| {
            if verb == "has" {
                format!("{name}. has {count} {what}")
            } else {
                format!("{name} in {count} {what}")
            }
        })
        .collect();
    Some(format!("{opening}{}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_content_is_named() {
        let mut findings = Findings::default();
        findings.remaining.insert("pods".into(), 2);
        findings.finalizers.insert("example.com/keep".into(), 1);
        let got = conditions(&findings, &[], Timestamp::UNIX_EPOCH);
        let said: Vec<(&str, &str)> = got
            .iter()
            .map(|one| (one.type_.as_str(), one.status.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                ("NamespaceDeletionDiscoveryFailure", "False"),
                ("NamespaceDeletionGroupVersionParsingFailure", "False"),
                ("NamespaceDeletionContentFailure", "False"),
                ("NamespaceContentRemaining", "True"),
                ("NamespaceFinalizersRemaining", "True"),
            ]
        );
        let message = got[3].message.as_deref();
        let want = "Some resources are remaining: pods. has 2 resource instances";
        assert_eq!(message, Some(want));
    }
}
