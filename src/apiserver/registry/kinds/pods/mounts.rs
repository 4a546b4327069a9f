//! What containers mount, and which block devices they get.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{paths, volumes::Volumes};
use crate::apiserver::registry::{
    Causes,
    kinds::value::{flag, has, items, text},
};

/// The names and the targets of one list, for the other to differ from.
fn taken<'a>(
    container: &'a Value,
    list: &str,
    target: &str,
) -> (HashSet<&'a str>, HashSet<&'a str>) {
    // Of entries with one name the last counts.
    let by_name: HashMap<&str, &str> = items(container, list)
        .iter()
        .map(|entry| (text(entry, "name"), text(entry, target)))
        .collect();
    (
        by_name.keys().copied().collect(),
        by_name.values().copied().collect(),
    )
}

/// `volumeMounts` of the container at `path`.
pub fn validate(container: &Value, volumes: &Volumes<'_>, path: &str, causes: &mut Causes) {
    let mounts = items(container, "volumeMounts");
    let (names, devices) = taken(container, "volumeDevices", "devicePath");
    let list = format!("{path}.volumeMounts");
    let mut targets = HashSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{list}[{index}]");
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        let own = format!("{path}.name");
        if name.is_empty() {
            causes.required(&own, "");
        }
        if !volumes.contains_key(name) {
            causes.not_found(&own, name);
        }
        let at = format!("{path}.mountPath");
        if target.is_empty() {
            causes.required(&at, "");
        }
        if !targets.insert(target) {
            causes.invalid(&at, target, "must be unique");
        }
        if names.contains(name) {
            causes.invalid(own, name, "must not already exist in volumeDevices");
        }
        if devices.contains(target) {
            let detail = "must not already exist as a path in volumeDevices";
            causes.invalid(at, target, detail);
        }
        // What is wrong below a mount is said of the list: so the API always had it.
        let (plain, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        paths::descending(plain, &format!("{list}.subPath"), causes);
        if !plain.is_empty() && !expression.is_empty() {
            let own = format!("{path}.subPathExpr");
            let detail = "subPathExpr and subPath are mutually exclusive";
            causes.invalid(own, expression, detail);
        }
        paths::descending(expression, &format!("{list}.subPathExpr"), causes);
        propagation(container, mount, &list, causes);
        recursive(mount, &list, causes);
    }
}

/// What a mount shows of mounts below it, and lets through to the host.
fn propagation(container: &Value, mount: &Value, list: &str, causes: &mut Causes) {
    const KNOWN: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
    if !has(mount, "mountPropagation") {
        return;
    }
    let propagation = text(mount, "mountPropagation");
    let own = format!("{list}.mountPropagation");
    if !KNOWN.contains(&propagation) {
        causes.unsupported(own, propagation, &KNOWN);
    } else if propagation == "Bidirectional" && !flag(container, "securityContext.privileged") {
        causes.forbidden(
            own,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
}

fn recursive(mount: &Value, list: &str, causes: &mut Causes) {
    if !has(mount, "recursiveReadOnly") {
        return;
    }
    let own = format!("{list}.recursiveReadOnly");
    match text(mount, "recursiveReadOnly") {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !flag(mount, "readOnly") {
                causes.forbidden(&own, "may only be specified when readOnly is true");
            }
            if !matches!(text(mount, "mountPropagation"), "" | "None") {
                causes.forbidden(
                    &own,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        other => causes.unsupported(own, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// `volumeDevices` of the container at `path`.
pub fn devices(container: &Value, volumes: &Volumes<'_>, path: &str, causes: &mut Causes) {
    let (mounted, mounts) = taken(container, "volumeMounts", "mountPath");
    let (mut names, mut targets) = (HashSet::new(), HashSet::new());
    for (index, device) in items(container, "volumeDevices").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.volumeDevices[{index}]");
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        let own = format!("{path}.name");
        if name.is_empty() {
            causes.required(&own, "");
        } else if !names.insert(name) {
            causes.invalid(&own, name, "must be unique");
        }
        match volumes.get(name) {
            None => causes.not_found(&own, name),
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                causes.invalid(&own, name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
            }
            Some(_) => {}
        }
        let at = format!("{path}.devicePath");
        if target.is_empty() {
            causes.required(&at, "");
        }
        if targets.contains(target) {
            causes.invalid(&at, target, "must be unique");
        }
        if target.split('/').any(|part| part == "..") {
            causes.invalid(&at, target, "can not contain backsteps ('..')");
        } else {
            targets.insert(target);
        }
        if mounted.contains(name) {
            causes.invalid(own, name, "must not already exist in volumeMounts");
        }
        if mounts.contains(target) {
            let detail = "must not already exist as a path in volumeMounts";
            causes.invalid(at, target, detail);
        }
    }
}
