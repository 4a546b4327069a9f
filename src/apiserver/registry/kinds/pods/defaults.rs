//! Defaults of a PodSpec: upstream's `SetDefaults_*` of core/v1.

use serde_json::{Value, json};

use crate::apiserver::registry::kinds::value::{
    at, at_mut, default_text, default_to, has, items_mut, set, text,
};

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HANDLERS: [&str; 2] = ["postStart", "preStop"];
/// `volumes[]` members that are not the source.
const NOT_SOURCES: [&str; 1] = ["name"];

/// A pod's own spec: the template's defaults and those only real pods get.
pub fn pod(object: &mut Value) {
    default_to(object, "spec.enableServiceLinks", true);
    let host_network = object["spec"]["hostNetwork"] == true;
    for list in ["spec.initContainers", "spec.containers"] {
        for container in items_mut(object, list) {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
    if has(object, "spec.resources.limits") {
        requests_from_limits(&mut object["spec"]);
    }
    spec(object, "spec");
}

/// A PodTemplateSpec at `path`.
pub fn template(object: &mut Value, path: &str) {
    if !has(object, path) {
        return;
    }
    spec(object, &format!("{path}.spec"));
}

fn spec(object: &mut Value, path: &str) {
    default_to(object, path, json!({}));
    let Some(spec) = at_mut(object, path) else {
        return;
    };
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "restartPolicy", "Always");
    default_text(spec, "schedulerName", "default-scheduler");
    default_to(spec, "securityContext", json!({}));
    default_to(spec, "terminationGracePeriodSeconds", 30);
    // The old name of the account mirrors the new one.
    let old = text(spec, "serviceAccount").to_owned();
    if !old.is_empty() {
        default_text(spec, "serviceAccountName", &old);
    }
    let account = text(spec, "serviceAccountName").to_owned();
    if !account.is_empty() {
        set(spec, "serviceAccount", account);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        items_mut(spec, list).iter_mut().for_each(container);
    }
    items_mut(spec, "volumes").iter_mut().for_each(volume);
}

fn container(container: &mut Value) {
    default_to(container, "resources", json!({}));
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    let policy = match is_latest(text(container, "image")) {
        true => "Always",
        false => "IfNotPresent",
    };
    default_text(container, "imagePullPolicy", policy);
    for port in items_mut(container, "ports") {
        default_text(port, "protocol", "TCP");
    }
    for env in items_mut(container, "env") {
        if let Some(field) = at_mut(env, "valueFrom.fieldRef") {
            default_text(field, "apiVersion", "v1");
        }
    }
    for name in PROBES {
        if let Some(probe) = at_mut(container, name) {
            default_to(probe, "timeoutSeconds", 1);
            default_to(probe, "periodSeconds", 10);
            default_to(probe, "successThreshold", 1);
            default_to(probe, "failureThreshold", 3);
            zero_means(probe);
            handler(probe);
            if let Some(grpc) = at_mut(probe, "grpc") {
                default_to(grpc, "service", "");
            }
        }
    }
    for name in HANDLERS {
        if let Some(hook) = at_mut(container, &format!("lifecycle.{name}")) {
            handler(hook);
        }
    }
}

/// A zero in these fields is the same as absence.
fn zero_means(probe: &mut Value) {
    for (name, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if probe[name] == 0 {
            probe[name] = value.into();
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = at_mut(handler, "httpGet") {
        default_text(get, "path", "/");
        default_text(get, "scheme", "HTTP");
    }
}

fn volume(volume: &mut Value) {
    let sourced = volume.as_object().is_some_and(|volume| {
        volume
            .iter()
            .any(|(key, value)| !NOT_SOURCES.contains(&key.as_str()) && !value.is_null())
    });
    if !sourced {
        set(volume, "emptyDir", json!({}));
    }
    for name in ["secret", "configMap", "projected", "downwardAPI"] {
        if let Some(source) = at_mut(volume, name) {
            default_to(source, "defaultMode", 420);
        }
    }
    downward_items(volume, "downwardAPI.items");
    for source in items_mut(volume, "projected.sources") {
        downward_items(source, "downwardAPI.items");
        if let Some(token) = at_mut(source, "serviceAccountToken") {
            default_to(token, "expirationSeconds", 3600);
        }
    }
    if has(volume, "hostPath") {
        default_to(volume, "hostPath.type", "");
    }
    if has(volume, "iscsi") {
        default_text(volume, "iscsi.iscsiInterface", "default");
    }
    for (kind, member, value) in [
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("azureDisk", "cachingMode", "ReadWrite"),
        ("azureDisk", "kind", "Shared"),
        ("azureDisk", "fsType", "ext4"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
    ] {
        if let Some(source) = at_mut(volume, kind) {
            default_text(source, member, value);
        }
    }
    if let Some(source) = at_mut(volume, "azureDisk") {
        default_to(source, "readOnly", false);
    }
    if let Some(claim) = at_mut(volume, "ephemeral.volumeClaimTemplate.spec") {
        default_to(claim, "volumeMode", "Filesystem");
    }
    if has(volume, "image") {
        let policy = match is_latest(text(volume, "image.reference")) {
            true => "Always",
            false => "IfNotPresent",
        };
        default_text(volume, "image.pullPolicy", policy);
    }
}

fn downward_items(value: &mut Value, path: &str) {
    for item in items_mut(value, path) {
        if let Some(field) = at_mut(item, "fieldRef") {
            default_text(field, "apiVersion", "v1");
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = at(container, "resources.limits").cloned() else {
        return;
    };
    for (name, limit) in limits.as_object().into_iter().flatten() {
        let requests = super::super::value::object_mut(container, "resources.requests");
        requests.entry(name).or_insert_with(|| limit.clone());
    }
}

fn host_ports(container: &mut Value) {
    for port in items_mut(container, "ports") {
        if port["hostPort"].as_i64().unwrap_or_default() == 0 {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    }
}

/// Whether an image reference names the tag `latest` or no tag and no digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("localhost:5000/nginx", true),
            ("localhost:5000/nginx:1.2", false),
            ("nginx@sha256:abc", false),
            ("nginx:1.27", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn a_small_pod_is_completed() {
        let mut object = json!({"spec": {
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
            "serviceAccountName": "me"}});
        pod(&mut object);
        let want = json!({"spec": {
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "v", "emptyDir": {}},
                {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            "serviceAccountName": "me", "serviceAccount": "me", "enableServiceLinks": true,
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
            "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30}});
        assert_eq!(object, want);
        pod(&mut object);
        assert_eq!(object, want, "defaulting twice changes nothing");
    }
}
