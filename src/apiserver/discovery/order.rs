//! The order of groups and versions, which is also the order of preference.

use std::cmp::Ordering;

use crate::apiserver::registry::Resource;

/// Built-in groups, most preferred first, as upstream ranks them. Others follow by name.
const GROUPS: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// The groups of the rows, most preferred first; the core group is the empty name.
pub fn groups(rows: &[&Resource]) -> Vec<&'static str> {
    let rank = |group: &str| GROUPS.iter().position(|known| *known == group);
    let mut all: Vec<&str> = rows.iter().map(|row| row.group).collect();
    all.sort_by_key(|group| (rank(group).unwrap_or(usize::MAX), *group));
    all.dedup();
    all
}

/// The versions of a group, most preferred first: `v2`, `v1`, `v2beta1`, `v1beta1`, `v1alpha1`.
pub fn versions(rows: &[&Resource], group: &str) -> Vec<&'static str> {
    let of_group = rows.iter().filter(|row| row.group == group);
    let mut all: Vec<&str> = of_group.map(|row| row.version).collect();
    all.sort_by(|a, b| prefer(a, b));
    all.dedup();
    all
}

fn prefer(a: &str, b: &str) -> Ordering {
    match (parse(a), parse(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        // Names that are no versions: by name.
        (None, None) => a.cmp(b),
    }
}

/// Class (2 stable, 1 beta, 0 alpha), major and minor: the greatest is the most preferred.
fn parse(version: &str) -> Option<(u8, u32, u32)> {
    let rest = version.strip_prefix('v')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (major, stage) = rest.split_at(end);
    let (class, minor) = if stage.is_empty() {
        (2, 0)
    } else if let Some(minor) = stage.strip_prefix("beta") {
        (1, minor.parse().ok()?)
    } else {
        (0, stage.strip_prefix("alpha")?.parse().ok()?)
    };
    Some((class, major.parse().ok()?, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_and_newer_versions_come_first() {
        let mut all = [
            "foo", "v1alpha1", "v1beta2", "v10", "v2", "bar", "v1beta10", "v2beta1",
        ];
        all.sort_by(|a, b| prefer(a, b));
        assert_eq!(
            all,
            [
                "v10", "v2", "v2beta1", "v1beta10", "v1beta2", "v1alpha1", "bar", "foo"
            ]
        );
    }
}
