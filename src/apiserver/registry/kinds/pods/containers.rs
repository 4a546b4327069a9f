//! Containers of all three lists.

use serde_json::Value;

use super::{probes, resources, security};
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, flag, has, items, number, text},
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

/// Validates `spec.<list>`; `seen` holds the names of the lists before it.
pub fn validate<'a>(
    spec: &'a Value,
    list: List,
    path: &str,
    seen: &mut Vec<&'a str>,
    causes: &mut Causes,
) {
    for (index, container) in items(spec, list.field()).iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.{}[{index}]", list.field());
        let name = text(container, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else {
            names::report(
                names::dns_label(name),
                name,
                &format!("{path}.name"),
                causes,
            );
            if seen.contains(&name) {
                causes.duplicate(format!("{path}.name"), name);
            }
            seen.push(name);
        }
        one(spec, container, list, &path, causes);
    }
}

/// When a container starts again, where it says so itself.
fn restarts(container: &Value, list: List, path: &str, causes: &mut Causes) {
    const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
    let policy = text(container, "restartPolicy");
    if list == List::Ephemeral {
        return;
    }
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        causes.unsupported(format!("{path}.restartPolicy"), policy, &POLICIES);
    }
    if policy.is_empty() && !items(container, "restartPolicyRules").is_empty() {
        causes.required(
            format!("{path}.restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        );
    }
}

fn resize_policies(container: &Value, path: &str, causes: &mut Causes) {
    let mut seen = Vec::new();
    for (index, policy) in items(container, "resizePolicy").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.resizePolicy[{index}]");
        let resource = text(policy, "resourceName");
        match resource {
            "" => causes.required(format!("{path}.resourceName"), ""),
            "cpu" | "memory" if seen.contains(&resource) => {
                causes.duplicate(format!("{path}.resourceName"), resource);
            }
            "cpu" | "memory" => {}
            other => {
                causes.unsupported(format!("{path}.resourceName"), other, &["cpu", "memory"]);
            }
        }
        seen.push(resource);
        match text(policy, "restartPolicy") {
            "NotRequired" | "RestartContainer" => {}
            "" => causes.required(format!("{path}.restartPolicy"), ""),
            other => causes.unsupported(
                format!("{path}.restartPolicy"),
                other,
                &["NotRequired", "RestartContainer"],
            ),
        }
    }
}

fn devices(spec: &Value, container: &Value, path: &str, causes: &mut Causes) {
    let mounts = items(container, "volumeMounts");
    let mut paths = Vec::new();
    for (index, device) in items(container, "volumeDevices").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.volumeDevices[{index}]");
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        let mut volumes = items(spec, "volumes").iter();
        let volume = volumes.find(|volume| text(volume, "name") == name);
        let own = format!("{path}.name");
        match volume {
            _ if name.is_empty() => causes.required(own, ""),
            None => causes.not_found(own, name),
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                causes.invalid(own, name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
            }
            Some(_) if mounts.iter().any(|mount| text(mount, "name") == name) => {
                causes.invalid(own, name, "must not already exist in volumeMounts");
            }
            Some(_) => {}
        }
        let own = format!("{path}.devicePath");
        if target.is_empty() {
            causes.required(&own, "");
        } else if paths.contains(&target) {
            causes.invalid(&own, target, "must be unique");
        } else if mounts
            .iter()
            .any(|mount| text(mount, "mountPath") == target)
        {
            causes.invalid(
                &own,
                target,
                "must not already exist as a path in volumeMounts",
            );
        } else if target.split('/').any(|part| part == "..") {
            causes.invalid(&own, target, "must not contain '..'");
        }
        paths.push(target);
    }
}

fn one(spec: &Value, container: &Value, list: List, path: &str, causes: &mut Causes) {
    let image = text(container, "image");
    if image.is_empty() {
        causes.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        causes.invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        );
    }
    for (field, known) in [
        ("imagePullPolicy", &["Always", "IfNotPresent", "Never"][..]),
        (
            "terminationMessagePolicy",
            &["FallbackToLogsOnError", "File"][..],
        ),
    ] {
        let given = text(container, field);
        if !known.contains(&given) {
            causes.unsupported(format!("{path}.{field}"), given, known);
        }
    }
    ports(container, path, causes);
    env(container, path, causes);
    mounts(spec, container, path, causes);
    devices(spec, container, path, causes);
    restarts(container, list, path, causes);
    resize_policies(container, path, causes);
    resources::validate(
        &container["resources"],
        &format!("{path}.resources"),
        causes,
    );
    security_context(spec, container, path, causes);
    let sidecar = text(container, "restartPolicy") == "Always";
    match list {
        List::Regular => probes::validate(spec, container, path, causes),
        List::Init if sidecar => probes::validate(spec, container, path, causes),
        List::Init => {
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
        List::Ephemeral => {
            for field in [
                "lifecycle",
                "livenessProbe",
                "readinessProbe",
                "startupProbe",
                "ports",
            ] {
                if has(container, field) {
                    causes.forbidden(
                        format!("{path}.{field}"),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
            if !container["resources"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty)
            {
                causes.forbidden(
                    format!("{path}.resources"),
                    "cannot be set for an Ephemeral Container",
                );
            }
        }
    }
}

fn ports(container: &Value, path: &str, causes: &mut Causes) {
    let mut seen = Vec::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            names::report(
                names::port_name(name),
                name,
                &format!("{path}.name"),
                causes,
            );
            if seen.contains(&name) {
                causes.duplicate(format!("{path}.name"), name);
            }
            seen.push(name);
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

fn env(container: &Value, path: &str, causes: &mut Causes) {
    for (index, env) in items(container, "env").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.env[{index}]");
        let name = text(env, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else {
            names::report(names::env_name(name), name, &format!("{path}.name"), causes);
        }
        let Some(from) = at(env, "valueFrom") else {
            continue;
        };
        let path = format!("{path}.valueFrom");
        if !text(env, "value").is_empty() {
            causes.invalid(&path, "", "may not be specified when `value` is not empty");
        }
        let sources = [
            "fieldRef",
            "resourceFieldRef",
            "configMapKeyRef",
            "secretKeyRef",
            "fileKeyRef",
        ];
        match sources.iter().filter(|source| has(from, source)).count() {
            0 => causes.invalid(&path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
            1 => {}
            _ => causes.invalid(&path, "", "may not have more than one field specified at a time"),
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = at(from, source) {
                let key = text(reference, "key");
                if key.is_empty() {
                    causes.required(format!("{path}.{source}.key"), "");
                } else {
                    names::report(
                        names::config_key(key),
                        key,
                        &format!("{path}.{source}.key"),
                        causes,
                    );
                }
            }
        }
        if has(from, "fieldRef") {
            field_path(
                text(from, "fieldRef.fieldPath"),
                &format!("{path}.fieldRef.fieldPath"),
                causes,
            );
        }
        if has(from, "resourceFieldRef") {
            let path = format!("{path}.resourceFieldRef.resource");
            resource_field(text(from, "resourceFieldRef.resource"), path, causes);
        }
    }
    for (index, source) in items(container, "envFrom").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.envFrom[{index}]");
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            let path = format!("{path}.prefix");
            names::report(names::env_name(prefix), prefix, &path, causes);
        }
        for reference in ["configMapRef", "secretRef"] {
            if has(source, reference) && text(&source[reference], "name").is_empty() {
                causes.required(format!("{path}.{reference}.name"), "");
            }
        }
        match (has(source, "configMapRef"), has(source, "secretRef")) {
            (false, false) => causes.invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            (true, true) => causes.invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            ),
            _ => {}
        }
    }
}

fn resource_field(resource: &str, path: String, causes: &mut Causes) {
    const KNOWN: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let pages = ["limits.hugepages-", "requests.hugepages-"];
    if resource.is_empty() {
        causes.required(path, "");
    } else if !KNOWN.contains(&resource) && !pages.iter().any(|page| resource.starts_with(page)) {
        causes.unsupported(path, resource, &KNOWN);
    }
}

fn field_path(field: &str, path: &str, causes: &mut Causes) {
    const KNOWN: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let by_key = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|prefix| field.starts_with(prefix) && field.ends_with("']"));
    if field.is_empty() {
        causes.required(path, "");
    } else if !by_key && !KNOWN.contains(&field) {
        causes.unsupported(path, field, &KNOWN);
    }
}

fn mounts(spec: &Value, container: &Value, path: &str, causes: &mut Causes) {
    let mut paths = Vec::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.volumeMounts[{index}]");
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        let known = items(spec, "volumes")
            .iter()
            .any(|volume| text(volume, "name") == name);
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else if !known {
            causes.not_found(format!("{path}.name"), name);
        }
        if target.is_empty() {
            causes.required(format!("{path}.mountPath"), "");
        } else if paths.contains(&target) {
            causes.invalid(format!("{path}.mountPath"), target, "must be unique");
        }
        paths.push(target);
        propagation(container, mount, &path, causes);
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            causes.invalid(
                format!("{path}.subPathExpr"),
                text(mount, "subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        for field in ["subPath", "subPathExpr"] {
            let inner = text(mount, field);
            if inner.starts_with('/') {
                causes.invalid(format!("{path}.{field}"), inner, "must be a relative path");
            }
            if inner.split('/').any(|part| part == "..") {
                causes.invalid(format!("{path}.{field}"), inner, "must not contain '..'");
            }
        }
    }
}

/// What a mount shows of mounts below it, and lets through to the host.
fn propagation(container: &Value, mount: &Value, path: &str, causes: &mut Causes) {
    const KNOWN: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
    let propagation = text(mount, "mountPropagation");
    let own = format!("{path}.mountPropagation");
    if !propagation.is_empty() && !KNOWN.contains(&propagation) {
        causes.unsupported(own, propagation, &KNOWN);
    } else if propagation == "Bidirectional" && !flag(container, "securityContext.privileged") {
        causes.forbidden(
            own,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
    let own = format!("{path}.recursiveReadOnly");
    match text(mount, "recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !flag(mount, "readOnly") {
                causes.forbidden(&own, "may only be specified when readOnly is true");
            }
            if !matches!(propagation, "" | "None") {
                causes.forbidden(
                    &own,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        other => causes.unsupported(own, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn security_context(spec: &Value, container: &Value, path: &str, causes: &mut Causes) {
    let Some(context) = at(container, "securityContext") else {
        return;
    };
    let path = format!("{path}.securityContext");
    security::of_container(context, &path, causes);
    let escalates = at(context, "allowPrivilegeEscalation").is_none_or(|value| value == true);
    if flag(context, "privileged") && !escalates {
        causes.invalid(
            &path,
            context,
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        );
    }
    // As the API has always had it: under its other name the capability is let through.
    let adds_admin = items(context, "capabilities.add")
        .iter()
        .any(|name| name == "CAP_SYS_ADMIN");
    if adds_admin && !escalates {
        causes.invalid(
            &path,
            context,
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
        );
    }
    let unmasked = text(context, "procMount") == "Unmasked";
    if unmasked && at(spec, "hostUsers").is_none_or(|users| users == true) {
        causes.invalid(
            format!("{path}.procMount"),
            "Unmasked",
            "`hostUsers` must be false to use `Unmasked`",
        );
    }
}
