//! Validation of a PodSpec, in the order in which the API names what is wrong.

use serde_json::Value;

use super::{
    affinity, claims,
    containers::{self, Pod},
    dns, env,
    references::is_mirror,
    resources, security, tolerations, volumes, whole, windows,
};
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, flag, has, items, number, text, texts},
    },
};

/// A PodSpec (defaulted) found at `path`: of a pod or of a template.
pub fn spec(spec: &Value, path: &str, causes: &mut Causes) {
    if !has(spec, "terminationGracePeriodSeconds") {
        causes.required(format!("{path}.terminationGracePeriodSeconds"), "");
    }
    let pod = Pod {
        spec,
        volumes: volumes::validate(spec, path, causes),
        claims: claims::named(spec),
        users: security::Users::of(spec),
    };
    claims::of_pod(spec, path, causes);
    containers::validate(&pod, path, causes);
    whole::of_pod(spec, &pod.claims, path, causes);
    whole::host_ports(spec, path, causes);
    policies(spec, path, causes);
    names::labels(
        spec.get("nodeSelector"),
        &format!("{path}.nodeSelector"),
        causes,
    );
    security::of_pod(spec, &format!("{path}.securityContext"), causes);
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        causes.invalid(
            format!("{path}.shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    affinity::validate(spec, path, causes);
    dns::config(spec, path, causes);
    gates(spec, path, causes);
    affinity::spread(spec, path, causes);
    windows::host_process(spec, path, causes);
    whole::users(spec, path, causes);
    whole::hostname(spec, path, causes);
    named(spec, &["serviceAccountName", "nodeName"], path, causes);
    let deadline = number(spec, "activeDeadlineSeconds");
    if let Some(seconds) = deadline.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds)) {
        causes.invalid(
            format!("{path}.activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for field in ["hostname", "subdomain"] {
        let given = text(spec, field);
        if !given.is_empty() {
            let own = format!("{path}.{field}");
            names::report(names::dns_label(given), given, &own, causes);
        }
    }
    let own = format!("{path}.tolerations");
    tolerations::list(items(spec, "tolerations"), &own, causes);
    host_aliases(spec, path, causes);
    named(spec, &["priorityClassName"], path, causes);
    if has(spec, "runtimeClassName") {
        let name = text(spec, "runtimeClassName");
        let own = format!("{path}.runtimeClassName");
        names::report(names::dns_subdomain(name), name, &own, causes);
    }
    preemption(spec, path, causes);
    overhead(spec, path, causes);
    windows::system(spec, path, causes);
    whole::group_and_responders(spec, path, causes);
    env::validate_files(spec, path, causes);
}

/// What holds for pods and not for templates, whose pods are made complete later.
pub fn pod(pod: &Value, causes: &mut Causes) {
    volumes::made_claims(pod, causes);
    if is_mirror(pod) && !items(pod, "spec.resourceClaims").is_empty() {
        causes.forbidden("", "static pods do not support resource claims");
    }
    if text(pod, "spec.serviceAccountName").is_empty() {
        for (index, volume) in items(pod, "spec.volumes").iter().enumerate() {
            for (at, source) in items(volume, "projected.sources").iter().enumerate() {
                if causes.is_full() {
                    return;
                }
                if has(source, "serviceAccountToken") {
                    let own = format!(
                        "spec.volumes[{index}].projected.sources[{at}].serviceAccountToken"
                    );
                    let detail = "must not be specified when serviceAccountName is not set";
                    causes.forbidden(own, detail);
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in items(&pod["spec"], list).iter().enumerate() {
            containers::image(container, &format!("spec.{list}[{index}]"), causes);
        }
    }
}

fn policies(spec: &Value, path: &str, causes: &mut Causes) {
    for (field, known) in [
        ("restartPolicy", &["Always", "OnFailure", "Never"][..]),
        (
            "dnsPolicy",
            &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"][..],
        ),
    ] {
        let given = text(spec, field);
        if given.is_empty() {
            causes.required(format!("{path}.{field}"), "");
        } else if !known.contains(&given) {
            causes.unsupported(format!("{path}.{field}"), given, known);
        }
    }
}

fn named(spec: &Value, fields: &[&str], path: &str, causes: &mut Causes) {
    for field in fields {
        let name = text(spec, field);
        if !name.is_empty() {
            let own = format!("{path}.{field}");
            names::report(names::dns_subdomain(name), name, &own, causes);
        }
    }
}

fn gates(spec: &Value, path: &str, causes: &mut Causes) {
    for (index, gate) in items(spec, "readinessGates").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let name = text(gate, "conditionType");
        let path = format!("{path}.readinessGates[{index}].conditionType");
        names::report(names::qualified_name(name), name, &path, causes);
    }
    let mut seen = std::collections::HashSet::new();
    for (index, gate) in items(spec, "schedulingGates").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let name = text(gate, "name");
        let path = format!("{path}.schedulingGates[{index}]");
        names::report(names::qualified_name(name), name, &path, causes);
        if !seen.insert(name) {
            causes.duplicate(path, name);
        }
    }
}

fn host_aliases(spec: &Value, path: &str, causes: &mut Causes) {
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}.hostAliases[{index}]");
        let ip = text(alias, "ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.invalid(format!("{path}.ip"), ip, detail);
        }
        for (at, host) in texts(alias, "hostnames").iter().enumerate() {
            let own = format!("{path}.hostnames[{at}]");
            names::report(names::dns_subdomain(host), host, &own, causes);
        }
    }
}

fn preemption(spec: &Value, path: &str, causes: &mut Causes) {
    if !has(spec, "preemptionPolicy") {
        return;
    }
    const KNOWN: [&str; 2] = ["PreemptLowerPriority", "Never"];
    let own = format!("{path}.preemptionPolicy");
    match text(spec, "preemptionPolicy") {
        "" => causes.required(own, ""),
        policy if !KNOWN.contains(&policy) => causes.unsupported(own, policy, &KNOWN),
        _ => {}
    }
}

/// What a pod costs besides its containers, as a limit of it.
fn overhead(spec: &Value, path: &str, causes: &mut Causes) {
    if let Some(overhead) = at(spec, "overhead") {
        let limits = serde_json::json!({ "limits": overhead });
        let own = format!("{path}.overhead");
        resources::requirements(&limits, resources::Owner::Container, &own, causes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::registry::kinds::{pods::defaults, value::set};

    fn pod() -> Value {
        json!({"spec": {
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "value": "b"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v"}]}})
    }

    fn causes_of(pod: &mut Value) -> Vec<(String, String)> {
        defaults::pod(pod);
        let mut causes = Causes::default();
        spec(&pod["spec"], "spec", &mut causes);
        causes
            .0
            .into_iter()
            .map(|cause| (cause.field, cause.message))
            .collect()
    }

    #[test]
    fn a_plain_pod_is_fine() {
        assert_eq!(causes_of(&mut pod()), []);
    }

    #[test]
    fn refusals() {
        for (path, value, field, message) in [
            (
                "restartPolicy",
                json!("Sometimes"),
                "spec.restartPolicy",
                "Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            ("containers", json!([]), "spec.containers", "Required value"),
            (
                "containers",
                json!([{"name": "c"}]),
                "spec.containers[0].image",
                "Required value",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]),
                "spec.containers[1].name",
                "Duplicate value: \"c\"",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "ports": [{"containerPort": 70000}]}]),
                "spec.containers[0].ports[0].containerPort",
                "Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "gone", "mountPath": "/x"}]}]),
                "spec.containers[0].volumeMounts[0].name",
                "Not found: \"gone\"",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]),
                "spec.containers[0].resources.requests",
                "Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "livenessProbe": {}}]),
                "spec.containers[0].livenessProbe",
                "Required value: must specify a handler type",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "env": [{"name": "a=b"}]}]),
                "spec.containers[0].env[0].name",
                "Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            ),
            (
                "activeDeadlineSeconds",
                json!(1_i64 << 31),
                "spec.activeDeadlineSeconds",
                "Invalid value: 2147483648: must be between 1 and 2147483647, inclusive",
            ),
            (
                "readinessGates",
                json!([{"conditionType": "a b"}]),
                "spec.readinessGates[0].conditionType",
                "Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "envFrom": [{"prefix": "a=", "configMapRef": {"name": "m"}}]}]),
                "spec.containers[0].envFrom[0].prefix",
                "Invalid value: \"a=\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "envFrom": [{"secretRef": {}}]}]),
                "spec.containers[0].envFrom[0].secretRef.name",
                "Required value",
            ),
            (
                "initContainers",
                json!([{"name": "i", "image": "i", "restartPolicy": "Sometimes"}]),
                "spec.initContainers[0].restartPolicy",
                "Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Enabled"}]}]),
                "spec.containers[0].volumeMounts.recursiveReadOnly",
                "Forbidden: may only be specified when readOnly is true",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]}]),
                "spec.containers[0].volumeMounts.mountPropagation",
                "Forbidden: Bidirectional mount propagation is available only to privileged containers",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Sideways"}]}]),
                "spec.containers[0].volumeMounts.mountPropagation",
                "Unsupported value: \"Sideways\": supported values: \"Bidirectional\", \"HostToContainer\", \"None\"",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}]),
                "spec.containers[0].lifecycle.preStop.sleep",
                "Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "securityContext": {"appArmorProfile": {"type": "Localhost"}}}]),
                "spec.containers[0].securityContext.appArmorProfile.localhostProfile",
                "Required value: must be set when AppArmor type is Localhost",
            ),
            (
                "securityContext",
                json!({"appArmorProfile": {"type": "RuntimeDefault", "localhostProfile": "x"}}),
                "spec.securityContext.appArmorProfile.localhostProfile",
                "Invalid value: \"x\": can only be set when AppArmor type is Localhost",
            ),
            (
                "securityContext",
                json!({"supplementalGroupsPolicy": "Some"}),
                "spec.securityContext.supplementalGroupsPolicy",
                "Unsupported value: \"Some\": supported values: \"Merge\", \"Strict\"",
            ),
            (
                "securityContext",
                json!({"fsGroupChangePolicy": "Some"}),
                "spec.securityContext.fsGroupChangePolicy",
                "Unsupported value: \"Some\": supported values: \"Always\", \"OnRootMismatch\"",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "resizePolicy": [{"resourceName": "disk", "restartPolicy": "NotRequired"}]}]),
                "spec.containers[0].resizePolicy",
                "Unsupported value: \"disk\": supported values: \"cpu\", \"memory\"",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}]),
                "spec.containers[0].volumeDevices[0].name",
                "Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}]}]),
                "spec.containers[0].env[0].valueFrom.resourceFieldRef.resource",
                "Unsupported value: \"limits.gpu\": supported values: \"limits.cpu\", \"limits.ephemeral-storage\", \"limits.memory\", \"requests.cpu\", \"requests.ephemeral-storage\", \"requests.memory\"",
            ),
            (
                "tolerations",
                json!([{"key": "a", "tolerationSeconds": 3}]),
                "spec.tolerations[0].effect",
                "Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            ),
        ] {
            let mut pod = pod();
            set(&mut pod["spec"], path, value);
            let want = vec![(field.to_owned(), message.to_owned())];
            assert_eq!(causes_of(&mut pod), want, "{path}");
        }
    }
}
