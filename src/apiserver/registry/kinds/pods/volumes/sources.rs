//! Every kind of source's own rules.

use proto::quantity::Quantity;
use serde_json::Value;

use super::projected;
use crate::apiserver::{
    registry::{
        Causes,
        kinds::{
            core::storage,
            names,
            pods::paths,
            value::{at, flag, has, items, members, number, text},
        },
    },
    status::CauseType,
};

/// Members that must not be empty.
const NEEDED: [(&str, &[&str]); 22] = [
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("secret", &["secretName"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["monitors", "image"]),
    ("cinder", &["volumeID"]),
    ("cephfs", &["monitors"]),
    ("flexVolume", &["driver"]),
    ("configMap", &["name"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("storageos", &["volumeName"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", &["driver"]),
    ("image", &["reference"]),
];
const LONGEST_DRIVER: usize = 63;
const LONGEST_TENANT: usize = 64;
/// The name of a volume with a colon and its portal, where an initiator has a name.
const LONGEST_PORTAL: usize = 64;

/// The source `kind` of a volume at `volume_path`.
pub fn one(volume: &Value, kind: &str, volume_path: &str, causes: &mut Causes) {
    let body = &volume[kind];
    // One source goes by an older name.
    let path = match kind {
        "gcePersistentDisk" => format!("{volume_path}.persistentDisk"),
        kind => format!("{volume_path}.{kind}"),
    };
    let needed = NEEDED.iter().find(|(of, _)| *of == kind);
    for field in needed.map(|(_, fields)| *fields).unwrap_or_default() {
        if is_empty(&body[*field]) {
            causes.required(format!("{path}.{field}"), "");
        }
    }
    match kind {
        "emptyDir" => {
            let limit = body["sizeLimit"].as_str().map(Quantity::parse);
            if let Some(Ok(limit)) = limit
                && limit.is_negative()
            {
                let detail = "SizeLimit field must be a valid resource quantity";
                causes.forbidden(format!("{path}.sizeLimit"), detail);
            }
        }
        "hostPath" => host_path(body, &path, causes),
        "gitRepo" => {
            let own = format!("{path}.directory");
            paths::descending(text(body, "directory"), &own, causes);
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            within(body, "partition", 0, 255, "1 and 255", &path, causes);
        }
        "nfs" => {
            let target = text(body, "path");
            if !target.starts_with('/') {
                let own = format!("{path}.path");
                causes.invalid(own, target, "must be an absolute path");
            }
        }
        "iscsi" => iscsi(volume, body, volume_path, &path, causes),
        "flocker" => flocker(body, &path, causes),
        "quobyte" => quobyte(body, &path, causes),
        "fc" => fibre_channel(body, &path, causes),
        "flexVolume" => options(body, &path, causes),
        "azureDisk" => azure_disk(body, &path, causes),
        "cinder" => secret_name(body, &path, causes),
        "storageos" => {
            for field in ["volumeName", "volumeNamespace"] {
                let name = text(body, field);
                if !name.is_empty() {
                    let own = format!("{path}.{field}");
                    names::report(names::dns_label(name), name, &own, causes);
                }
            }
            secret_name(body, &path, causes);
        }
        "secret" | "configMap" | "downwardAPI" | "projected" => {
            projected::source(body, kind, &path, causes);
        }
        "csi" => csi(body, &path, causes),
        "ephemeral" => ephemeral(body, &path, causes),
        "image" => {
            const POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
            let policy = text(body, "pullPolicy");
            let own = format!("{path}.pullPolicy");
            if policy.is_empty() {
                causes.required(own, "");
            } else if !POLICIES.contains(&policy) {
                causes.unsupported(own, policy, &POLICIES);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn within(
    body: &Value,
    field: &str,
    least: i64,
    most: i64,
    said: &str,
    path: &str,
    causes: &mut Causes,
) {
    if let Some(given) = number(body, field).filter(|given| !(least..=most).contains(given)) {
        let detail = format!("must be between {said}, inclusive");
        causes.invalid(format!("{path}.{field}"), given, &detail);
    }
}

fn secret_name(body: &Value, path: &str, causes: &mut Causes) {
    if has(body, "secretRef") && text(body, "secretRef.name").is_empty() {
        causes.required(format!("{path}.secretRef.name"), "");
    }
}

fn host_path(body: &Value, path: &str, causes: &mut Causes) {
    const TYPES: [&str; 8] = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    let target = text(body, "path");
    if target.is_empty() {
        return causes.required(format!("{path}.path"), "");
    }
    paths::no_backsteps(target, &format!("{path}.path"), causes);
    let kind = text(body, "type");
    if !TYPES.contains(&kind) {
        causes.unsupported(format!("{path}.type"), kind, &TYPES);
    }
}

fn iscsi(volume: &Value, body: &Value, volume_path: &str, path: &str, causes: &mut Causes) {
    let mut qualified = |name: &str, own: String| {
        if let Some(why) = wrong_initiator(name) {
            causes.invalid(own, name, why);
        }
    };
    let target = text(body, "iqn");
    if !target.is_empty() {
        qualified(target, format!("{path}.iqn"));
    }
    if let Some(name) = at(body, "initiatorName").and_then(Value::as_str) {
        qualified(name, format!("{path}.initiatorname"));
    }
    within(body, "lun", 0, 255, "0 and 255", path, causes);
    let secret = flag(body, "chapAuthDiscovery") || flag(body, "chapAuthSession");
    if secret && !has(body, "secretRef") {
        causes.required(format!("{path}.secretRef"), "");
    }
    let name = text(volume, "name");
    let length = name.len() + 1 + text(body, "targetPortal").len();
    if has(body, "initiatorName") && length > LONGEST_PORTAL {
        causes.invalid(format!("{volume_path}.name"), name, "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.");
    }
}

/// What is wrong with the name of an end of an iSCSI connection.
fn wrong_initiator(name: &str) -> Option<&'static str> {
    let code = |length: usize| {
        name.len() == length + 4
            && name
                .bytes()
                .skip(4)
                .all(|byte| byte.is_ascii_alphanumeric())
    };
    let fine = match name.get(..3) {
        Some("iqn") => is_iqn(name),
        Some("eui") => code(16),
        Some("naa") => code(32),
        _ => return Some("must be valid format starting with iqn, eui, or naa"),
    };
    (!fine).then_some("must be valid format")
}

/// `iqn.YYYY-MM.authority:name`.
fn is_iqn(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("iqn.") else {
        return false;
    };
    let Some((date, rest)) = rest.split_once('.') else {
        return false;
    };
    let digits = |text: &str, count: usize| {
        text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let dated = date
        .split_once('-')
        .is_some_and(|(year, month)| digits(year, 4) && digits(month, 2));
    let Some((authority, target)) = rest.split_once(':') else {
        return false;
    };
    let authority_fine = !authority.is_empty()
        && authority
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let target_fine = !target.is_empty()
        && !target
            .chars()
            .any(|one| ",;*&$|".contains(one) || one.is_whitespace());
    dated && authority_fine && target_fine
}

fn flocker(body: &Value, path: &str, causes: &mut Causes) {
    let (name, uuid) = (text(body, "datasetName"), text(body, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        causes.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        let detail = "datasetName and datasetUUID can not be specified simultaneously";
        causes.invalid(path, "resource", detail);
    }
    if name.contains('/') {
        let own = format!("{path}.datasetName");
        causes.invalid(own, name, "must not contain '/'");
    }
}

fn quobyte(body: &Value, path: &str, causes: &mut Causes) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(body, "registry");
    let own = format!("{path}.registry");
    if registry.is_empty() {
        causes.required(own, PAIRS);
    } else if text(body, "tenant").len() > LONGEST_TENANT {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        causes.required(format!("{path}.tenant"), detail);
    } else {
        if !registry.split(',').all(is_host_and_port) {
            causes.invalid(own, registry, PAIRS);
        }
    }
    if text(body, "volume").is_empty() {
        causes.required(format!("{path}.volume"), "");
    }
}

fn is_host_and_port(pair: &str) -> bool {
    match pair.rsplit_once(':') {
        None => false,
        Some((host, _)) if host.starts_with('[') => host.ends_with(']'),
        Some((host, _)) => !host.contains([':', '[', ']']),
    }
}

fn fibre_channel(body: &Value, path: &str, causes: &mut Causes) {
    let (targets, ids) = (items(body, "targetWWNs"), items(body, "wwids"));
    let own = format!("{path}.targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        let detail = "must specify either targetWWNs or wwids, but not both";
        causes.required(&own, detail);
    }
    if !targets.is_empty() && !ids.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        causes.invalid(own, targets, detail);
    }
    if targets.is_empty() {
        return;
    }
    if !has(body, "lun") {
        let detail = "lun is required if targetWWNs is specified";
        causes.required(format!("{path}.lun"), detail);
    }
    within(body, "lun", 0, 255, "0 and 255", path, causes);
}

/// A driver's options are not in the names of Kubernetes itself.
fn options(body: &Value, path: &str, causes: &mut Causes) {
    for (key, _) in members(body, "options").into_iter().flatten() {
        let namespace = key.split_once('/').map_or(&**key, |(prefix, _)| prefix);
        let namespace = format!(".{}", namespace.to_lowercase());
        if [".kubernetes.io", ".k8s.io"]
            .iter()
            .any(|own| namespace.ends_with(own))
        {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            causes.invalid(format!("{path}.options[{key}]"), key, detail);
        }
    }
}

fn azure_disk(body: &Value, path: &str, causes: &mut Causes) {
    for (field, known) in [
        ("cachingMode", ["None", "ReadOnly", "ReadWrite"]),
        ("kind", ["Dedicated", "Managed", "Shared"]),
    ] {
        let given = text(body, field);
        if has(body, field) && !known.contains(&given) {
            causes.unsupported(format!("{path}.{field}"), given, &known);
        }
    }
    let (start, form) = match text(body, "kind") {
        _ if !has(body, "kind") => return,
        "Managed" => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        _ => (
            "https://",
            "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",
        ),
    };
    let uri = text(body, "diskURI");
    if !uri.starts_with(start) {
        causes.unsupported(format!("{path}.diskURI"), uri, &[form]);
    }
}

fn csi(body: &Value, path: &str, causes: &mut Causes) {
    let driver = text(body, "driver");
    let own = format!("{path}.driver");
    if driver.len() > LONGEST_DRIVER {
        let message = format!("Too long: may not be more than {LONGEST_DRIVER} bytes");
        causes.push(CauseType::FieldValueTooLong, &own, message);
    }
    if !driver.is_empty() {
        let wrong = names::dns_subdomain(&driver.to_lowercase());
        names::report(wrong, driver, &own, causes);
    }
    if has(body, "nodePublishSecretRef") {
        match text(body, "nodePublishSecretRef.name") {
            "" => causes.required(format!("{path}.nodePublishSecretRef.name"), ""),
            name => {
                let own = format!("{path}.name");
                names::report(names::dns_subdomain(name), name, &own, causes);
            }
        }
    }
}

/// A claim that is made for the pod.
fn ephemeral(body: &Value, path: &str, causes: &mut Causes) {
    let path = format!("{path}.volumeClaimTemplate");
    let Some(template) = at(body, "volumeClaimTemplate") else {
        return causes.required(path, "");
    };
    let metadata = format!("{path}.metadata");
    let own = format!("{metadata}.annotations");
    names::annotations(at(template, "metadata.annotations"), &own, causes);
    let own = format!("{metadata}.labels");
    names::labels(at(template, "metadata.labels"), &own, causes);
    for (key, value) in members(template, "metadata").into_iter().flatten() {
        if !matches!(&**key, "annotations" | "labels") && !is_empty(value) {
            causes.forbidden(format!("{metadata}.{key}"), "cannot be set");
        }
    }
    storage::claim_spec(&template["spec"], &format!("{path}.spec"), causes);
}
