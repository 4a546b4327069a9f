//! Validation of a PodSpec.

use serde_json::Value;

use super::{
    containers::{self, List},
    security, volumes,
};
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, flag, has, items, number, text, texts},
    },
};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// A PodSpec (defaulted) found at `path`.
pub fn spec(spec: &Value, path: &str, causes: &mut Causes) {
    volumes::validate(spec, path, causes);
    if items(spec, "containers").is_empty() {
        causes.required(format!("{path}.containers"), "");
    }
    let mut seen = Vec::new();
    for list in [List::Regular, List::Init, List::Ephemeral] {
        containers::validate(spec, list, path, &mut seen, causes);
    }
    host_port_conflicts(spec, path, causes);
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
    if text(spec, "dnsPolicy") == "None" && items(spec, "dnsConfig.nameservers").is_empty() {
        causes.required(
            format!("{path}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    let deadline = number(spec, "activeDeadlineSeconds");
    if let Some(seconds) = deadline.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds)) {
        causes.invalid(
            format!("{path}.activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    if let Some(seconds) =
        number(spec, "terminationGracePeriodSeconds").filter(|seconds| *seconds < 0)
    {
        causes.invalid(
            format!("{path}.terminationGracePeriodSeconds"),
            seconds,
            "must be greater than or equal to 0",
        );
    }
    for (field, rule) in [
        (
            "serviceAccountName",
            names::dns_subdomain as fn(&str) -> Vec<String>,
        ),
        ("nodeName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
    ] {
        let given = text(spec, field);
        if !given.is_empty() {
            names::report(rule(given), given, &format!("{path}.{field}"), causes);
        }
    }
    names::labels(
        spec.get("nodeSelector"),
        &format!("{path}.nodeSelector"),
        causes,
    );
    tolerations(spec, path, causes);
    super::affinity::validate(spec, path, causes);
    super::affinity::spread(spec, path, causes);
    super::whole::validate(spec, path, causes);
    for (index, gate) in items(spec, "readinessGates").iter().enumerate() {
        let name = text(gate, "conditionType");
        let path = format!("{path}.readinessGates[{index}].conditionType");
        names::report(names::qualified_name(name), name, &path, causes);
    }
    for (index, secret) in items(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            causes.required(format!("{path}.imagePullSecrets[{index}].name"), "");
        }
    }
    super::dns::config(spec, path, causes);
    for (index, alias) in items(spec, "hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{index}]");
        if text(alias, "ip").parse::<std::net::IpAddr>().is_err() {
            causes.invalid(
                format!("{path}.ip"),
                text(alias, "ip"),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
        for (at, host) in texts(alias, "hostnames").iter().enumerate() {
            names::report(
                names::dns_subdomain(host),
                host,
                &format!("{path}.hostnames[{at}]"),
                causes,
            );
        }
    }
    security_context(spec, path, causes);
    for (index, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        names::report(
            names::qualified_name(name),
            name,
            &format!("{path}.schedulingGates[{index}]"),
            causes,
        );
    }
}

fn host_port_conflicts(spec: &Value, path: &str, causes: &mut Causes) {
    let mut taken = Vec::new();
    for list in [List::Regular, List::Init] {
        let restarts_only = list == List::Init;
        for (index, container) in items(spec, list.field()).iter().enumerate() {
            if restarts_only && text(container, "restartPolicy") != "Always" {
                continue;
            }
            for (number_at, port) in items(container, "ports").iter().enumerate() {
                let Some(host) = number(port, "hostPort").filter(|host| *host != 0) else {
                    continue;
                };
                let key = (host, text(port, "hostIP"), text(port, "protocol"));
                if taken.contains(&key) {
                    causes.duplicate(
                        format!(
                            "{path}.{}[{index}].ports[{number_at}].hostPort",
                            list.field()
                        ),
                        &format!("{}/{}/{}", key.2, key.1, key.0),
                    );
                }
                taken.push(key);
            }
        }
    }
}

fn tolerations(spec: &Value, path: &str, causes: &mut Causes) {
    for (index, toleration) in items(spec, "tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{index}]");
        let (key, operator, effect) = (
            text(toleration, "key"),
            text(toleration, "operator"),
            text(toleration, "effect"),
        );
        if !key.is_empty() {
            names::label_key(key, &format!("{path}.key"), causes);
        }
        if key.is_empty() && operator != "Exists" {
            causes.invalid(format!("{path}.operator"), operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
        }
        match operator {
            "" | "Equal" | "Lt" | "Gt" => {}
            "Exists" if !text(toleration, "value").is_empty() => {
                causes.invalid(
                    format!("{path}.operator"),
                    toleration,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            "Exists" => {}
            other => causes.unsupported(format!("{path}.operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            causes.unsupported(format!("{path}.effect"), effect, &EFFECTS);
        }
        if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
            causes.invalid(
                format!("{path}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
}

fn security_context(spec: &Value, path: &str, causes: &mut Causes) {
    let Some(context) = at(spec, "securityContext") else {
        return;
    };
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        causes.invalid(
            format!("{path}.shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    let path = format!("{path}.securityContext");
    security::of_pod(context, &path, causes);
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
                "volumes",
                json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]),
                "spec.volumes[0].hostPath",
                "Forbidden: may not specify more than 1 volume type",
            ),
            (
                "terminationGracePeriodSeconds",
                json!(-1),
                "spec.terminationGracePeriodSeconds",
                "Invalid value: -1: must be greater than or equal to 0",
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
                "spec.containers[0].volumeMounts[0].recursiveReadOnly",
                "Forbidden: may only be specified when readOnly is true",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]}]),
                "spec.containers[0].volumeMounts[0].mountPropagation",
                "Forbidden: Bidirectional mount propagation is available only to privileged containers",
            ),
            (
                "containers",
                json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Sideways"}]}]),
                "spec.containers[0].volumeMounts[0].mountPropagation",
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
                "spec.containers[0].resizePolicy[0].resourceName",
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
