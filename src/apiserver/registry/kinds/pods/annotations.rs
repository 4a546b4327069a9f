//! Annotations of pods that mean something to the API.

use serde_json::Value;

use super::{containers::List, paths, references::MIRROR, tolerations};
use crate::apiserver::registry::{
    Causes,
    kinds::value::{at, items, members, text},
};

const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
pub const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub const SECCOMP_OF: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub const APP_ARMOR_OF: &str = "container.apparmor.security.beta.kubernetes.io/";
const LOCALHOST: &str = "localhost/";

fn value<'a>(metadata: &'a Value, key: &str) -> Option<&'a str> {
    metadata["annotations"].get(key)?.as_str()
}

/// The annotations of a pod or template, with its spec; `path` is theirs.
pub fn validate(metadata: &Value, spec: &Value, path: &str, causes: &mut Causes) {
    if let Some(value) = value(metadata, MIRROR)
        && text(spec, "nodeName").is_empty()
    {
        causes.invalid(
            format!("{path}[{MIRROR}]"),
            value,
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    if let Some(list) = value(metadata, TOLERATIONS).filter(|list| !list.is_empty()) {
        match serde_json::from_str::<Value>(list) {
            Ok(list) if list.is_array() || list.is_null() => {
                let own = format!("{path}.{TOLERATIONS}");
                let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
                tolerations::list(list, &own, causes);
            }
            Ok(_) => causes.invalid(path, TOLERATIONS, "must be a list of tolerations"),
            Err(error) => causes.invalid(path, TOLERATIONS, &error.to_string()),
        }
    }
    if let Some(cost) = value(metadata, COST).filter(|cost| !is_cost(cost)) {
        causes.invalid(format!("{path}[{COST}]"), cost, "must be a 32bit integer");
    }
    let all = members(metadata, "annotations").into_iter().flatten();
    for (key, profile) in all {
        if causes.is_full() {
            return;
        }
        let profile = profile.as_str().unwrap_or_default();
        if key == SECCOMP || key.starts_with(SECCOMP_OF) {
            seccomp(profile, &format!("{path}.{key}"), causes);
        }
        if let Some(name) = key.strip_prefix(APP_ARMOR_OF) {
            let own = format!("{path}[{key}]");
            if !containers(spec).any(|(_, container)| text(container, "name") == name) {
                causes.invalid(&own, name, "container not found");
            }
            let known = matches!(profile, "" | "runtime/default" | "unconfined");
            if !known && !profile.starts_with(LOCALHOST) {
                let detail = format!("invalid AppArmor profile name: {profile:?}");
                causes.invalid(own, profile, &detail);
            }
        }
    }
}

/// As a number is written that is compared with others.
fn is_cost(cost: &str) -> bool {
    let first = matches!(cost.as_bytes().first(), Some(b'-' | b'1'..=b'9')) || cost == "0";
    first && cost.parse::<i32>().is_ok()
}

fn seccomp(profile: &str, path: &str, causes: &mut Causes) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        profile => match profile.strip_prefix(LOCALHOST) {
            Some(file) => paths::descending(file, path, causes),
            None => causes.invalid(path, profile, "must be a valid seccomp profile"),
        },
    }
}

/// Containers with their paths below the spec.
fn containers(spec: &Value) -> impl Iterator<Item = (String, &Value)> {
    [List::Init, List::Regular, List::Ephemeral]
        .into_iter()
        .flat_map(move |list| {
            let all = items(spec, list.field()).iter().enumerate();
            all.map(move |(index, one)| (format!("{}[{index}]", list.field()), one))
        })
}

/// Where both are there, an annotation says the same as the field that came after it.
pub fn seccomp_matches(metadata: &Value, spec: &Value, path: &str, causes: &mut Causes) {
    let named = ["runtime/default", "docker/default"];
    let mut both = |annotation: Option<&str>, context: &Value, path: String| {
        let (Some(annotation), Some(profile)) = (annotation, at(context, "seccompProfile")) else {
            return;
        };
        let path = format!("{path}.seccompProfile");
        matches(annotation, profile, &named, "seccomp", &path, causes);
    };
    let own = value(metadata, SECCOMP);
    both(
        own,
        &spec["securityContext"],
        format!("{path}.securityContext"),
    );
    for (at, container) in containers(spec) {
        let own = value(
            metadata,
            &format!("{SECCOMP_OF}{}", text(container, "name")),
        );
        let path = format!("{path}.{at}.securityContext");
        both(own, &container["securityContext"], path);
    }
}

/// As [`seccomp_matches`]; what the pod says holds for its containers.
pub fn app_armor_matches(metadata: &Value, spec: &Value, path: &str, causes: &mut Causes) {
    if text(spec, "os.name") == "windows" {
        return;
    }
    let of_pod = at(spec, "securityContext.appArmorProfile");
    for (own, container) in containers(spec) {
        if causes.is_full() {
            return;
        }
        let profile = at(container, "securityContext.appArmorProfile").or(of_pod);
        let key = format!("{APP_ARMOR_OF}{}", text(container, "name"));
        if let (Some(annotation), Some(profile)) = (value(metadata, &key), profile) {
            let path = format!("{path}.{own}.securityContext.appArmorProfile");
            let named = ["runtime/default"];
            matches(annotation, profile, &named, "apparmor", &path, causes);
        }
    }
}

fn matches(
    annotation: &str,
    profile: &Value,
    default: &[&str],
    what: &str,
    path: &str,
    causes: &mut Causes,
) {
    let same_type = match text(profile, "type") {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => default.contains(&annotation),
        "Localhost" => match annotation.strip_prefix(LOCALHOST) {
            None => false,
            Some(file) => {
                let named = at(profile, "localhostProfile").and_then(Value::as_str);
                if named != Some(file) {
                    let detail = format!("{what} profile in annotation and field must match");
                    causes.forbidden(format!("{path}.localhostProfile"), &detail);
                }
                true
            }
        },
        _ => true,
    };
    if !same_type {
        let detail = format!("{what} type in annotation and field must match");
        causes.forbidden(format!("{path}.type"), &detail);
    }
}
