//! Containers of all three lists.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::{env, mounts, probes, resources, restarts, security, volumes::Volumes};
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{has, items, number, text},
    },
};

/// Which list a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Regular,
    Init,
    Ephemeral,
}

impl List {
    pub fn field(self) -> &'static str {
        match self {
            Self::Regular => "containers",
            Self::Init => "initContainers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// The pod around the containers.
pub struct Pod<'a> {
    pub spec: &'a Value,
    pub volumes: Volumes<'a>,
    /// The names of its claims of devices.
    pub claims: BTreeSet<&'a str>,
    pub users: security::Users,
}

/// Validates the containers of a spec at `path`.
pub fn validate(pod: &Pod<'_>, path: &str, causes: &mut Causes) {
    if items(pod.spec, "containers").is_empty() {
        causes.required(format!("{path}.containers"), "");
    }
    let mut seen = HashSet::new();
    of_list(pod, List::Regular, path, &mut seen, causes);
    restarts::host_port_conflicts(pod.spec, List::Regular, path, causes);
    of_list(pod, List::Init, path, &mut seen, causes);
    restarts::host_port_conflicts(pod.spec, List::Init, path, causes);
    let lasting = seen.clone();
    of_list(pod, List::Ephemeral, path, &mut seen, causes);
    targets(pod.spec, &lasting, path, causes);
}

/// `seen` holds the names of the lists before this one.
fn of_list<'a>(
    pod: &Pod<'a>,
    list: List,
    path: &str,
    seen: &mut HashSet<&'a str>,
    causes: &mut Causes,
) {
    for (index, container) in items(pod.spec, list.field()).iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.{}[{index}]", list.field());
        common(pod, container, &path, causes);
        let name = text(container, "name");
        // A name that is missing is said to be so, once.
        if !name.is_empty() && !seen.insert(name) {
            causes.duplicate(format!("{path}.name"), name);
        }
        match list {
            List::Regular => {
                probes::validate(pod.spec, container, &path, causes);
                restarts::policy(container, &path, causes);
            }
            List::Init => init(pod, container, &path, causes),
            List::Ephemeral => ephemeral(container, &path, causes),
        }
    }
}

/// What holds for a container of any list.
fn common(pod: &Pod<'_>, container: &Value, path: &str, causes: &mut Causes) {
    let name = text(container, "name");
    let own = format!("{path}.name");
    if name.is_empty() {
        causes.required(own, "");
    } else {
        names::report(names::dns_label(name), name, &own, causes);
    }
    if text(container, "image").is_empty() {
        causes.required(format!("{path}.image"), "");
    }
    one_of(
        container,
        "terminationMessagePolicy",
        &["File", "FallbackToLogsOnError"],
        path,
        causes,
    );
    ports(container, path, causes);
    env::validate(container, path, causes);
    env::validate_from(container, path, causes);
    mounts::validate(container, &pod.volumes, path, causes);
    mounts::devices(container, &pod.volumes, path, causes);
    one_of(
        container,
        "imagePullPolicy",
        &["Always", "IfNotPresent", "Never"],
        path,
        causes,
    );
    let own = format!("{path}.resources");
    resources::validate(&container["resources"], &pod.claims, &own, causes);
    let policy = text(pod.spec, "restartPolicy");
    restarts::on_resize(container, policy, path, causes);
    let own = format!("{path}.securityContext");
    security::of_container(&container["securityContext"], pod.users, &own, causes);
}

fn one_of(container: &Value, field: &str, known: &[&str], path: &str, causes: &mut Causes) {
    let own = format!("{path}.{field}");
    match text(container, field) {
        "" => causes.required(own, ""),
        given if !known.contains(&given) => causes.unsupported(own, given, known),
        _ => {}
    }
}

fn init(pod: &Pod<'_>, container: &Value, path: &str, causes: &mut Causes) {
    restarts::policy(container, path, causes);
    if text(container, "restartPolicy") == "Always" {
        probes::validate(pod.spec, container, path, causes);
    } else {
        for field in [
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            if has(container, field) {
                causes.forbidden(
                    format!("{path}.{field}"),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
    restarts::of_init(container, path, causes);
}

/// Nobody relies on what one looks into a pod with.
fn ephemeral(container: &Value, path: &str, causes: &mut Causes) {
    const DETAIL: &str = "cannot be set for an Ephemeral Container";
    image(container, path, causes);
    for field in [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ] {
        let set = match &container[field] {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            // Where nothing is set, a default says so.
            Value::Object(members) if field == "resources" => !members.is_empty(),
            _ => true,
        };
        if set {
            causes.forbidden(format!("{path}.{field}"), DETAIL);
        }
    }
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        for field in ["subPath", "subPathExpr"] {
            if causes.is_full() {
                return;
            }
            if !text(mount, field).is_empty() {
                let own = format!("{path}.volumeMounts[{index}].{field}");
                causes.forbidden(own, DETAIL);
            }
        }
    }
}

fn targets(spec: &Value, lasting: &HashSet<&str>, path: &str, causes: &mut Causes) {
    let list = items(spec, "ephemeralContainers").iter().enumerate();
    for (index, container) in list {
        if causes.is_full() {
            return;
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !lasting.contains(target) {
            let own = format!("{path}.ephemeralContainers[{index}].targetContainerName");
            causes.not_found(own, target);
        }
    }
}

/// In a template an image may be anything that is there.
pub fn image(container: &Value, path: &str, causes: &mut Causes) {
    let image = text(container, "image");
    if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        causes.invalid(format!("{path}.image"), image, detail);
    }
}

fn ports(container: &Value, path: &str, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            let own = format!("{path}.name");
            let wrong = names::port_name(name);
            if wrong.is_empty() && !seen.insert(name) {
                causes.duplicate(own, name);
            } else {
                names::report(wrong, name, &own, causes);
            }
        }
        match number(port, "containerPort") {
            None | Some(0) => causes.required(format!("{path}.containerPort"), ""),
            Some(number) => names::port(number, &format!("{path}.containerPort"), causes),
        }
        if let Some(host) = number(port, "hostPort").filter(|host| *host != 0) {
            names::port(host, &format!("{path}.hostPort"), causes);
        }
        match text(port, "protocol") {
            "TCP" | "UDP" | "SCTP" => {}
            "" => causes.required(format!("{path}.protocol"), ""),
            other => causes.unsupported(format!("{path}.protocol"), other, &["SCTP", "TCP", "UDP"]),
        }
    }
}
