//! What is allowed in a pod and most likely not meant: told in `Warning` headers.

mod ports;

use std::collections::HashSet;

use proto::quantity::Quantity;
use serde_json::Value;

use super::{
    annotations::{APP_ARMOR_OF, SECCOMP, SECCOMP_OF},
    whole::VISITED,
};
use crate::apiserver::registry::kinds::{
    names,
    value::{at, has, items, number, pairs, text},
};

/// More of them help nobody.
const MOST: usize = 64;

const LABELS: [(&str, &str); 5] = [
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
];
const ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
/// The member, its path, and what became of it.
const VOLUMES: [(&str, &str, &str); 9] = [
    (
        "photonPersistentDisk",
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    ("gitRepo", "gitRepo", "deprecated in v1.11"),
    (
        "scaleIO",
        "scaleIO",
        "deprecated in v1.16, non-functional in v1.22+",
    ),
    (
        "flocker",
        "flocker",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    (
        "storageos",
        "storageOS",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    (
        "quobyte",
        "quobyte",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    (
        "glusterfs",
        "glusterfs",
        "deprecated in v1.25, non-functional in v1.26+",
    ),
    (
        "cephfs",
        "cephfs",
        "deprecated in v1.28, non-functional in v1.31+",
    ),
    (
        "rbd",
        "rbd",
        "deprecated in v1.28, non-functional in v1.31+",
    ),
];

fn label(key: &str) -> Option<&'static str> {
    let found = LABELS.iter().find(|(old, _)| *old == key);
    found.map(|(_, said)| *said)
}

/// Of a new pod. Changes of one are frequent, and people seldom make them.
pub fn pod(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let mut said = Vec::new();
    let name = text(new, "metadata.name");
    let wrong = names::dns_label(name);
    if !name.is_empty() && !wrong.is_empty() {
        said.push(format!("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]", wrong.join(" ")));
    }
    said.extend(of_template(new, ""));
    said
}

/// Of an object with a template at `path`, where its spec is new.
pub fn template(path: &'static str, new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| old["spec"] == new["spec"] && old["template"] == new["template"]) {
        return Vec::new();
    }
    at(new, path).map_or_else(Vec::new, |template| of_template(template, path))
}

/// Of a template found at `path`, or a pod, which is found at none.
fn of_template(template: &Value, path: &str) -> Vec<String> {
    let path = match path {
        "" => String::new(),
        path => format!("{path}."),
    };
    let mut said = Said(Vec::new());
    let (spec, metadata) = (&template["spec"], &template["metadata"]);
    let own = format!("{path}spec");
    of_nodes(spec, &own, &mut said);
    for (key, message) in ANNOTATIONS {
        if has_annotation(metadata, key) {
            said.that(format!("{path}metadata.annotations[{key}]: {message}"));
        }
    }
    of_volumes(spec, &own, &mut said);
    repeated(spec, &own, &mut said);
    fractions(spec, "overhead", &own, &mut said);
    const FIELD: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    if !has(spec, "securityContext.seccompProfile") && has_annotation(metadata, SECCOMP) {
        said.that(format!("{path}metadata.annotations[{SECCOMP}]: {FIELD}"));
    }
    for (at, container) in containers(spec) {
        let name = text(container, "name");
        let key = format!("{SECCOMP_OF}{name}");
        if !has(container, "securityContext.seccompProfile") && has_annotation(metadata, &key) {
            said.that(format!("{path}metadata.annotations[{key}]: {FIELD}"));
        }
        let key = format!("{APP_ARMOR_OF}{name}");
        let field = [spec, container]
            .iter()
            .any(|one| has(one, "securityContext.appArmorProfile"));
        if !field && has_annotation(metadata, &key) {
            said.that(format!("{path}metadata.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
        let own = format!("{own}.{at}");
        for list in ["limits", "requests"] {
            let path = format!("{own}.resources");
            fractions(&container["resources"], list, &path, &mut said);
        }
        variables(container, &own, &mut said);
    }
    ports::of(spec, &own, &mut said);
    if number(spec, "terminationGracePeriodSeconds").is_some_and(|grace| grace < 0) {
        said.that(format!("{own}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    of_pods(spec, &own, &mut said);
    said.0
}

struct Said(Vec<String>);

impl Said {
    fn that(&mut self, text: String) {
        if self.0.len() < MOST {
            self.0.push(text);
        }
    }
}

fn has_annotation(metadata: &Value, key: &str) -> bool {
    metadata["annotations"].get(key).is_some()
}

fn containers(spec: &Value) -> impl Iterator<Item = (String, &Value)> {
    VISITED.into_iter().flat_map(move |list| {
        let all = items(spec, list).iter().enumerate();
        all.map(move |(index, one)| (format!("{list}[{index}]"), one))
    })
}

fn of_nodes(spec: &Value, path: &str, said: &mut Said) {
    const AFFINITY: &str = "affinity.nodeAffinity";
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    for (key, _) in pairs(spec, "nodeSelector") {
        if let Some(message) = label(key) {
            said.that(format!("{path}.nodeSelector[{key}]: {message}"));
        }
    }
    let mut term = |term: &Value, path: String| {
        for (index, rule) in items(term, "matchExpressions").iter().enumerate() {
            let key = text(rule, "key");
            if let Some(message) = label(key) {
                let own = format!("{path}.matchExpressions[{index}].key");
                said.that(format!("{own}: {key} is {message}"));
            }
        }
    };
    let list = format!("{AFFINITY}.{REQUIRED}");
    for (index, one) in items(spec, &list).iter().enumerate() {
        term(one, format!("{path}.{list}[{index}]"));
    }
    let list = format!("{AFFINITY}.{PREFERRED}");
    for (index, wish) in items(spec, &list).iter().enumerate() {
        let own = format!("{path}.{list}[{index}].preference");
        term(&wish["preference"], own);
    }
    for (index, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let own = format!("{path}.topologySpreadConstraints[{index}]");
        let key = text(constraint, "topologyKey");
        if let Some(message) = label(key) {
            said.that(format!("{own}.topologyKey: {key} is {message}"));
        }
        no_selector(constraint, &own, said);
    }
}

fn no_selector(term: &Value, path: &str, said: &mut Said) {
    if !has(term, "labelSelector") {
        said.that(format!(
            "{path}.labelSelector: a null labelSelector results in matching no pod"
        ));
    }
}

fn of_pods(spec: &Value, path: &str, said: &mut Said) {
    for kind in ["affinity.podAffinity", "affinity.podAntiAffinity"] {
        let list = format!("{kind}.requiredDuringSchedulingIgnoredDuringExecution");
        for (index, term) in items(spec, &list).iter().enumerate() {
            no_selector(term, &format!("{path}.{list}[{index}]"), said);
        }
        let list = format!("{kind}.preferredDuringSchedulingIgnoredDuringExecution");
        for (index, wish) in items(spec, &list).iter().enumerate() {
            let own = format!("{path}.{list}[{index}].podAffinityTerm");
            no_selector(&wish["podAffinityTerm"], &own, said);
        }
    }
}

fn of_volumes(spec: &Value, path: &str, said: &mut Said) {
    let volumes = items(spec, "volumes");
    for (index, volume) in volumes.iter().enumerate() {
        for (kind, named, message) in VOLUMES {
            if has(volume, kind) {
                said.that(format!("{path}.volumes[{index}].{named}: {message}"));
            }
        }
    }
    let tokens: HashSet<&str> = volumes
        .iter()
        .flat_map(|volume| items(volume, "projected.sources"))
        .filter(|source| has(source, "serviceAccountToken"))
        .map(|source| text(source, "serviceAccountToken.path"))
        .collect();
    if tokens.is_empty() {
        return;
    }
    for (index, volume) in volumes.iter().enumerate() {
        for source in items(volume, "projected.sources") {
            for (kind, named) in [
                ("configMap", "configMap"),
                ("secret", "secrets"),
                ("downwardAPI", "downwardAPI"),
            ] {
                for (at, item) in items(&source[kind], "items").iter().enumerate() {
                    let target = text(item, "path");
                    if tokens.contains(target) {
                        said.that(format!("{path}.volumes[{index}].projected.sources.{named}[{at}]: has duplicated path with ServiceAccountToken {target:?}"));
                    }
                }
            }
            let target = text(source, "clusterTrustBundle.path");
            if has(source, "clusterTrustBundle") && tokens.contains(target) {
                said.that(format!("{path}.volumes[{index}].projected.sources.ClusterTrustBundle: has duplicated path with ServiceAccountToken {target:?}"));
            }
        }
    }
}

fn repeated(spec: &Value, path: &str, said: &mut Said) {
    for (list, key) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = HashSet::new();
        for (index, item) in items(spec, list).iter().enumerate() {
            let value = text(item, key);
            if !seen.insert(value) {
                said.that(format!(
                    "{path}.{list}[{index}].{key}: duplicate {key} {value:?}"
                ));
            }
        }
    }
    for (index, secret) in items(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            said.that(format!(
                "{path}.imagePullSecrets[{index}].name: invalid empty name \"\""
            ));
        }
    }
}

/// Bytes do not come in parts.
fn fractions(object: &Value, list: &str, path: &str, said: &mut Said) {
    for resource in ["memory", "ephemeral-storage"] {
        let amount = object[list][resource].as_str().map(Quantity::parse);
        if let Some(Ok(amount)) = amount
            && amount.milli() % 1000 != 0
        {
            let shown = amount.canonical();
            said.that(format!("{path}.{list}[{resource}]: fractional byte value {shown:?} is invalid, must be an integer"));
        }
    }
}

/// A variable that is there twice, unless the second is made of the first.
fn variables(container: &Value, path: &str, said: &mut Said) {
    let mut seen = HashSet::new();
    for (index, variable) in items(container, "env").iter().enumerate() {
        let (name, value) = (text(variable, "name"), text(variable, "value"));
        if seen.insert(name) {
            continue;
        }
        let first = format!("$({name})");
        if has(variable, "valueFrom") || value == first || !value.contains(&first) {
            said.that(format!("{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}
