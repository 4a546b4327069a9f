//! What the restricted level asks for besides the baseline: the least a pod can have.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Violation,
    baseline::{added_beyond, is_seccomp, seccomp as wrong_seccomp},
    pod::{Pod, capabilities as listed, containers, name, plural, quoted, violation},
};
use crate::apiserver::registry::kinds::value::{at, has, number, text};

pub fn escalation(pod: &Pod<'_>) -> Option<Violation> {
    let path = "securityContext.allowPrivilegeEscalation";
    let bad = pod.containers_where(|container| at(container, path) != Some(&Value::Bool(false)));
    match bad.is_empty() {
        true => None,
        false => violation(
            "allowPrivilegeEscalation != false",
            format!(
                "{} must set securityContext.allowPrivilegeEscalation=false",
                containers(&bad)
            ),
        ),
    }
}

pub fn escalation_on_linux(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        None
    } else {
        escalation(pod)
    }
}

pub fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    let keeps = pod
        .containers_where(|container| !listed(container, "drop").iter().any(|name| name == "ALL"));
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers(&keeps)
        ));
    }
    details.extend(added_beyond(pod, &["NET_BIND_SERVICE"]));
    match details.is_empty() {
        true => None,
        false => violation("unrestricted capabilities", details.join("; ")),
    }
}

pub fn capabilities_on_linux(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        None
    } else {
        capabilities(pod)
    }
}

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

pub fn volumes(pod: &Pod<'_>) -> Option<Violation> {
    let allowed = |volume: &&Value| VOLUMES.iter().any(|kind| has(volume, kind));
    let bad: Vec<&Value> = pod
        .volumes()
        .iter()
        .filter(|volume| !allowed(volume))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let kind = |volume: &&'_ Value| {
        let sources = volume.as_object().into_iter().flatten();
        let mut sources = sources.filter(|(key, source)| *key != "name" && !source.is_null());
        sources
            .next()
            .map_or("unknown", |(key, _)| key.as_str())
            .to_owned()
    };
    let kinds: BTreeSet<String> = bad.iter().map(kind).collect();
    violation(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", bad.len()),
            quoted(bad.iter().map(|volume| name(volume))),
            plural("uses", "use", bad.len()),
            plural(
                "restricted volume type",
                "restricted volume types",
                kinds.len()
            ),
            quoted(kinds.iter().map(String::as_str))
        ),
    )
}

pub fn non_root(pod: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let setters = pod.setters(|context| at(context, "runAsNonRoot") == Some(&Value::Bool(false)));
    if !setters.is_empty() {
        return violation(
            REASON,
            format!(
                "{} must not set securityContext.runAsNonRoot=false",
                setters.words()
            ),
        );
    }
    let path = "securityContext.runAsNonRoot";
    if has(pod.spec(), path) {
        return None;
    }
    let silent = pod.containers_where(|container| !has(container, path));
    match silent.is_empty() {
        true => None,
        false => violation(
            REASON,
            format!(
                "pod or {} must set securityContext.runAsNonRoot=true",
                containers(&silent)
            ),
        ),
    }
}

pub fn non_root_of_host_users(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() {
        None
    } else {
        non_root(pod)
    }
}

pub fn user(pod: &Pod<'_>) -> Option<Violation> {
    let setters = pod.setters(|context| number(context, "runAsUser") == Some(0));
    match setters.is_empty() {
        true => None,
        false => violation(
            "runAsUser=0",
            format!("{} must not set runAsUser=0", setters.words()),
        ),
    }
}

pub fn user_of_host_users(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() { None } else { user(pod) }
}

pub fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if let Some(wrong) = wrong_seccomp(pod) {
        return Some(wrong);
    }
    if is_seccomp(text(pod.spec(), "securityContext.seccompProfile.type")) {
        return None;
    }
    let path = "securityContext.seccompProfile";
    let silent = pod.containers_where(|container| !has(container, path));
    match silent.is_empty() {
        true => None,
        false => violation(
            "seccompProfile",
            format!(
                "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
                containers(&silent)
            ),
        ),
    }
}

pub fn seccomp_on_linux(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() { None } else { seccomp(pod) }
}
