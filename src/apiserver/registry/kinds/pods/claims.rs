//! Claims of devices: the pod's, and what containers use of them.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use crate::apiserver::{
    registry::{
        Causes,
        kinds::{
            names,
            value::{has, items, text},
        },
    },
    status::CauseType,
};

/// The names of the pod's claims, also of bad ones.
pub fn named(spec: &Value) -> BTreeSet<&str> {
    let all = items(spec, "resourceClaims").iter();
    all.map(|claim| text(claim, "name"))
        .filter(|name| !name.is_empty())
        .collect()
}

/// `resourceClaims` of the spec at `path`.
pub fn of_pod(spec: &Value, path: &str, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (index, claim) in items(spec, "resourceClaims").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.resourceClaims[{index}]");
        let name = text(claim, "name");
        let own = format!("{path}.name");
        if name.is_empty() {
            causes.required(own, "");
        } else if !seen.insert(name) {
            causes.duplicate(own, name);
        } else {
            names::report(names::dns_label(name), name, &own, causes);
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.iter().filter(|source| has(claim, source)).count() {
            0 => causes.invalid(
                &path,
                claim,
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            1 => {}
            _ => causes.invalid(&path, claim, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
        }
        for source in sources {
            if has(claim, source) {
                let name = text(claim, source);
                let own = format!("{path}.{source}");
                names::report(names::dns_subdomain(name), name, &own, causes);
            }
        }
    }
}

/// `claims` of a container's resources at `path`: each use once, and all of a claim or parts.
pub fn used(resources: &Value, of_pod: &BTreeSet<&str>, path: &str, causes: &mut Causes) {
    let (mut whole, mut parts) = (HashSet::new(), HashSet::new());
    let mut claims_with_parts = HashSet::new();
    for (index, claim) in items(resources, "claims").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.claims[{index}]");
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            causes.required(path, "");
            continue;
        }
        if whole.contains(name) {
            causes.duplicate(&path, name);
        } else if request.is_empty() {
            if claims_with_parts.contains(name) {
                causes.duplicate(&path, name);
            }
            whole.insert(name);
        } else {
            let own = format!("{path}.request");
            names::report(names::dns_label(request), request, &own, causes);
            if !parts.insert((name, request)) {
                causes.duplicate(&path, &format!("{name}/{request}"));
            }
            claims_with_parts.insert(name);
        }
        if !of_pod.contains(name) {
            let known = match of_pod.is_empty() {
                true => " which is empty".to_owned(),
                false => format!(
                    ": {}",
                    of_pod.iter().copied().collect::<Vec<_>>().join(", ")
                ),
            };
            let message = format!(
                "Not found: {name:?}: must be one of the names in pod.spec.resourceClaims{known}"
            );
            causes.push(CauseType::FieldValueNotFound, path, message);
        }
    }
}
