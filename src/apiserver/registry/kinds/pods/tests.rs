//! Whole pods: those that are fine, and what is said of those that are not.

use serde_json::{Value, json};

use super::{annotations, defaults, template, validate, warnings, whole};
use crate::apiserver::registry::Causes;

fn texts(causes: Causes) -> Vec<String> {
    let causes = causes.0.iter();
    causes
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect()
}

/// A pod with one container, and what is merged into its spec.
fn pod(spec: &Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "default",
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "emptyDir": {}}]},
    });
    json_patch::merge(&mut pod["spec"], spec);
    defaults::pod(&mut pod);
    pod
}

fn said(spec: &Value) -> String {
    let pod = pod(spec);
    let mut causes = Causes::default();
    validate::spec(&pod["spec"], "spec", &mut causes);
    validate::pod(&pod, &mut causes);
    whole::validate_new(&pod, &mut causes);
    texts(causes).join("; ")
}

fn container(more: &Value) -> Value {
    let mut container = json!({"name": "c", "image": "i"});
    json_patch::merge(&mut container, more);
    json!({ "containers": [container] })
}

#[test]
fn pods_that_are_fine() {
    for spec in [
        json!({}),
        json!({"terminationGracePeriodSeconds": -1}),
        json!({"imagePullSecrets": [{"name": ""}, {"name": "a"}]}),
        json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}),
        json!({"initContainers": [{"name": "i", "image": "i", "restartPolicy": "Always", "ports": [{"containerPort": 1, "hostPort": 80}]}],
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1, "hostPort": 80}]}]}),
        json!({"initContainers": [{"name": "i", "image": "i", "ports": [{"containerPort": 1, "hostPort": 80}]},
            {"name": "j", "image": "i", "ports": [{"containerPort": 1, "hostPort": 80}]}]}),
        json!({"os": {"name": "linux"}, "containers": [{"name": "c", "image": "i", "lifecycle": {"stopSignal": "SIGRTMIN+3"}}]}),
        json!({"os": {"name": "windows"}, "securityContext": {"windowsOptions": {"runAsUserName": "A\\b", "hostProcess": true}}, "hostNetwork": true}),
        json!({"hostUsers": false, "containers": [{"name": "c", "image": "i", "securityContext": {"procMount": "Unmasked"}}]}),
        json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}, {"name": "nic", "resourceClaimTemplateName": "t"}],
            "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu", "request": "a"}, {"name": "gpu", "request": "b"}, {"name": "nic"}]}}]}),
        json!({"tolerations": [{"operator": "Exists"}, {"key": "k", "value": "v"}, {"key": "k", "operator": "Gt", "value": "-3"},
            {"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}]}),
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "not a label", "whenUnsatisfiable": "DoNotSchedule"}]}),
        json!({"overhead": {"cpu": "10m"}, "runtimeClassName": "r"}),
        json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a_b.", "."]}}),
        json!({"hostnameOverride": "a.b.c", "subdomain": "s"}),
        json!({"schedulingGates": [{"name": "a.b/c"}], "readinessGates": [{"conditionType": "x.y/z"}]}),
        json!({"resources": {"requests": {"cpu": "1", "hugepages-2Mi": "4Mi"}, "limits": {"hugepages-2Mi": "4Mi"}}}),
        container(&json!({"resources": {"limits": {"example.com/a": "1", "cpu": "1"}}})),
        container(&json!({"resources": {"requests": {"memory": "100m"}}})),
        container(
            &json!({"volumeMounts": [{"name": "v", "mountPath": "/a:b"}, {"name": "v", "mountPath": "c", "subPath": "a..b/c"}]}),
        ),
        container(
            &json!({"env": [{"name": "a b", "value": ""}, {"name": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
            {"name": "y", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "e", "key": "K", "optional": true}}},
            {"name": "z", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}]}),
        ),
        container(&json!({"envFrom": [{"configMapRef": {"name": "a-"}}]})),
        container(
            &json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0]}}]}),
        ),
        container(
            &json!({"livenessProbe": {"grpc": {"port": 1}}, "readinessProbe": {"successThreshold": 3, "httpGet": {"port": "web", "httpHeaders": [{"name": "X-A", "value": ""}]}},
            "startupProbe": {"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 1}}),
        ),
        container(
            &json!({"lifecycle": {"postStart": {"sleep": {"seconds": 0}}, "preStop": {"tcpSocket": {"port": 1}}}}),
        ),
        container(
            &json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}),
        ),
    ] {
        assert_eq!(said(&spec), "", "{spec}");
    }
}

#[test]
fn pods_that_are_refused() {
    const C: &str = "spec.containers[0]";
    let rule =
        |rule: Value| container(&json!({"restartPolicy": "Never", "restartPolicyRules": [rule]}));
    let env = |from: Value| container(&json!({"env": [{"name": "a", "valueFrom": from}]}));
    let mount = |more: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v"});
        json_patch::merge(&mut mount, &more);
        container(&json!({ "volumeMounts": [mount] }))
    };
    for (spec, want) in [
        (container(&json!({"image": " i"})), format!("{C}.image: Invalid value: \" i\": must not have leading or trailing whitespace")),
        (container(&json!({"terminationMessagePolicy": "X"})), format!("{C}.terminationMessagePolicy: Unsupported value: \"X\": supported values: \"File\", \"FallbackToLogsOnError\"")),
        (container(&json!({"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]})), format!("{C}.ports[1].name: Duplicate value: \"a\"")),
        (container(&json!({"ports": [{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]})), format!("{C}.ports[1].hostPort: Duplicate value: \"TCP//5\"")),
        (env(json!({})), format!("{C}.env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")),
        (env(json!({"fieldRef": {"fieldPath": "metadata.foo"}})), format!("{C}.env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.foo\": error converting fieldPath: field label not supported: metadata.foo")),
        (env(json!({"fieldRef": {"fieldPath": "metadata.name['a']"}})), format!("{C}.env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.name['a']\": error converting fieldPath: field label does not support subscript: metadata.name['a']")),
        (env(json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}})), format!("{C}.env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.name\": error converting fieldPath: unsupported pod version: v2")),
        (env(json!({"resourceFieldRef": {"resource": "limits.memory", "divisor": "3"}})), format!("{C}.env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.memory\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource")),
        (env(json!({"secretKeyRef": {"name": "s"}})), format!("{C}.env[0].valueFrom.secretKeyRef.key: Required value")),
        (env(json!({"secretKeyRef": {"name": "S", "key": "k"}})), format!("{C}.env[0].valueFrom.secretKeyRef.name: Invalid value: \"S\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')")),
        (env(json!({"fileKeyRef": {"volumeName": "w", "path": "../a", "key": "k"}})), format!("{C}.env[0].valueFrom.fileKeyRef.path: Invalid value: \"../a\": must not contain '..'; {C}.env[0].valueFrom.fileKeyRef.volumeName: Not found: \"w\"")),
        (container(&json!({"envFrom": [{}]})), format!("{C}.envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`")),
        (mount(json!({"name": "w"})), format!("{C}.volumeMounts[0].name: Not found: \"w\"")),
        (mount(json!({"subPath": "/a"})), format!("{C}.volumeMounts.subPath: Invalid value: \"/a\": must be a relative path")),
        (mount(json!({"subPathExpr": "a/.."})), format!("{C}.volumeMounts.subPathExpr: Invalid value: \"a/..\": must not contain '..'")),
        (mount(json!({"subPath": "a", "subPathExpr": "a"})), format!("{C}.volumeMounts[0].subPathExpr: Invalid value: \"a\": subPathExpr and subPath are mutually exclusive")),
        (container(&json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}]})), format!("{C}.volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique")),
        (container(&json!({"volumeDevices": [{"name": "v", "devicePath": "/d"}]})), format!("{C}.volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")),
        (container(&json!({"resources": {"limits": {"foo": "1"}}})), format!("{C}.resources.limits[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified; {C}.resources.limits[foo]: Invalid value: \"foo\": must be a standard resource for containers; {C}.resources.requests[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified; {C}.resources.requests[foo]: Invalid value: \"foo\": must be a standard resource for containers")),
        (container(&json!({"resources": {"requests": {"storage": "1"}}})), format!("{C}.resources.requests[storage]: Invalid value: \"storage\": must be a standard resource for containers")),
        (container(&json!({"resources": {"limits": {"hugepages-2Mi": "2Mi"}}})), format!("{C}.resources: Forbidden: HugePages require cpu or memory")),
        (container(&json!({"resources": {"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}})), format!("{C}.resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi; {C}.resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi")),
        (container(&json!({"resources": {"claims": [{"name": "gpu"}]}})), format!("{C}.resources.claims[0]: Not found: \"gpu\": must be one of the names in pod.spec.resourceClaims which is empty")),
        (json!({"resourceClaims": [{"name": "gpu"}]}), "spec.resourceClaims[0]: Invalid value: {\"name\":\"gpu\"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`".to_owned()),
        (json!({"resourceClaims": [{"name": "g", "resourceClaimName": "a"}, {"name": "g", "resourceClaimName": "a"}]}), "spec.resourceClaims[1].name: Duplicate value: \"g\"".to_owned()),
        (container(&json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}, {"resourceName": "cpu", "restartPolicy": "NotRequired"}]})), format!("{C}.resizePolicy[1]: Duplicate value: \"cpu\"")),
        (json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}), format!("{C}.resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod `restartPolicy` is 'Never'")),
        (json!({"initContainers": [{"name": "i", "image": "i", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}), "spec.initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": must not be set to 'RestartContainer' for non-sidecar initContainers".to_owned()),
        (container(&json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In"}}]})), format!("{C}.restartPolicy: Required value: must specify restartPolicy when restart rules are used")),
        (rule(json!({"action": "X", "exitCodes": {"operator": "In"}})), format!("{C}.restartPolicyRules[0].action: Unsupported value: \"X\": supported values: \"Restart\", \"RestartAllContainers\"")),
        (rule(json!({"action": "Restart"})), format!("{C}.restartPolicyRules[0].exitCodes: Required value: must be specified")),
        (rule(json!({"action": "Restart", "exitCodes": {}})), format!("{C}.restartPolicyRules[0].exitCodes.operator: Unsupported value: \"\": supported values: \"In\", \"NotIn\"")),
        (container(&json!({"lifecycle": {"stopSignal": "SIGTERM"}})), format!("{C}.lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`")),
        (json!({"os": {"name": "windows"}, "containers": [{"name": "c", "image": "i", "lifecycle": {"stopSignal": "SIGHUP"}}]}), format!("{C}.lifecycle.stopSignal: Unsupported value: \"SIGHUP\": supported values: \"SIGKILL\", \"SIGTERM\"")),
        (container(&json!({"lifecycle": {"preStop": {}}})), format!("{C}.lifecycle.preStop: Required value: must specify a handler type")),
        (container(&json!({"livenessProbe": {"exec": {}, "grpc": {"port": 1}}})), format!("{C}.livenessProbe.exec.command: Required value; {C}.livenessProbe.grpc: Forbidden: may not specify more than 1 handler type")),
        (container(&json!({"livenessProbe": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a:b"}]}}})), format!("{C}.livenessProbe.httpGet.httpHeaders: Invalid value: \"a:b\": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')")),
        (container(&json!({"readinessProbe": {"grpc": {"port": 1}, "terminationGracePeriodSeconds": 1}})), format!("{C}.readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes")),
        (container(&json!({"securityContext": {"procMount": "Unmasked"}})), format!("{C}.securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`")),
        (container(&json!({"securityContext": {"windowsOptions": {"runAsUserName": ""}}})), format!("{C}.securityContext.windowsOptions.runAsUserName: Invalid value: \"\": runAsUserName cannot be an empty string")),
        (json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}), "spec.hostNetwork: Invalid value: false: hostNetwork must be true if pod contains any hostProcess containers".to_owned()),
        (json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net/ipv4/x", "value": "1"}]}}), "spec.securityContext.sysctls[0].name: Invalid value: \"net/ipv4/x\": may not be specified when 'hostNetwork' is true".to_owned()),
        (json!({"hostIPC": true, "securityContext": {"sysctls": [{"name": "kernel.sem", "value": "1"}]}}), "spec.securityContext.sysctls[0].name: Invalid value: \"kernel.sem\": may not be specified when 'hostIPC' is true".to_owned()),
        (json!({"securityContext": {"seLinuxChangePolicy": "X"}}), "spec.securityContext.seLinuxChangePolicy: Unsupported value: \"X\": supported values: \"MountOption\", \"Recursive\"".to_owned()),
        (json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]}), format!("{C}.ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true")),
        (json!({"hostUsers": false, "hostPID": true}), "spec.HostPID: Forbidden: when `hostUsers` is false".to_owned()),
        (json!({"hostnameOverride": "a", "hostNetwork": true}), "spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true".to_owned()),
        (json!({"dnsPolicy": "None"}), "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None".to_owned()),
        (json!({"schedulingGates": [{"name": "a"}, {"name": "a"}]}), "spec.schedulingGates[1]: Duplicate value: \"a\"".to_owned()),
        (json!({"preemptionPolicy": "X"}), "spec.preemptionPolicy: Unsupported value: \"X\": supported values: \"PreemptLowerPriority\", \"Never\"".to_owned()),
        (json!({"overhead": {"foo/bar": "500m"}}), "spec.overhead.limits[foo/bar]: Invalid value: \"500m\": must be an integer".to_owned()),
        (json!({"os": {"name": "plan9"}}), "spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\"".to_owned()),
        (json!({"os": {"name": "linux"}, "securityContext": {"windowsOptions": {}}}), "spec.securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod".to_owned()),
        (json!({"os": {"name": "windows"}, "securityContext": {"fsGroup": 1}}), "spec.securityContext.fsGroup: Forbidden: cannot be set for a windows pod".to_owned()),
        (json!({"tolerations": [{"key": "k", "operator": "Lt", "value": "01"}]}), "spec.tolerations[0].value: Invalid value: \"01\": must be a valid decimal integer in canonical form".to_owned()),
        (json!({"tolerations": [{"key": "k", "operator": "Exists", "value": "v"}]}), "spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'".to_owned()),
        (json!({"schedulingGroup": {}}), "spec.schedulingGroup.podGroupName: Invalid value: null: must specify one of: `podGroupName`".to_owned()),
        (json!({"runtimeClassName": ""}), "spec.runtimeClassName: Invalid value: \"\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned()),
        (json!({"serviceAccountName": "", "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}), "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set".to_owned()),
        (json!({"resources": {"claims": [], "requests": {"cpu": "1"}}}), "spec.resources.claims: Forbidden: claims may not be set for Resources at pod-level".to_owned()),
    ] {
        assert_eq!(said(&spec), want, "{spec}");
    }
}

#[test]
fn containers_to_look_into_pods_with() {
    for (more, want) in [
        (
            json!({"targetContainerName": "c", "securityContext": {"privileged": true}}),
            "",
        ),
        (
            json!({"targetContainerName": "x"}),
            ".targetContainerName: Not found: \"x\"",
        ),
        (json!({"name": "c"}), ".name: Duplicate value: \"c\""),
        (
            json!({"ports": [{"containerPort": 1}]}),
            ".ports: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]}),
            ".resizePolicy: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            json!({"restartPolicy": "Always"}),
            ".restartPolicy: Forbidden: cannot be set for an Ephemeral Container",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a"}]}),
            ".volumeMounts[0].subPath: Forbidden: cannot be set for an Ephemeral Container",
        ),
    ] {
        let mut one = json!({"name": "e", "image": "i"});
        json_patch::merge(&mut one, &more);
        let pod = pod(&json!({"ephemeralContainers": [one]}));
        let mut causes = Causes::default();
        validate::spec(&pod["spec"], "spec", &mut causes);
        let want = match want {
            "" => String::new(),
            want => format!("spec.ephemeralContainers[0]{want}"),
        };
        assert_eq!(texts(causes).join("; "), want, "{more}");
    }
}

#[test]
fn annotations_that_mean_something() {
    for (key, value, spec, want) in [
        (annotations::SECCOMP, "runtime/default", json!({}), ""),
        (
            annotations::SECCOMP,
            "x",
            json!({}),
            "metadata.annotations.seccomp.security.alpha.kubernetes.io/pod: Invalid value: \"x\": must be a valid seccomp profile",
        ),
        (
            annotations::SECCOMP,
            "unconfined",
            json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
            "spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match",
        ),
        (
            "container.apparmor.security.beta.kubernetes.io/c",
            "localhost/a",
            json!({}),
            "",
        ),
        (
            "container.apparmor.security.beta.kubernetes.io/d",
            "unconfined",
            json!({}),
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/d]: Invalid value: \"d\": container not found",
        ),
        (
            "container.apparmor.security.beta.kubernetes.io/c",
            "x",
            json!({}),
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: Invalid value: \"x\": invalid AppArmor profile name: \"x\"",
        ),
        (
            "container.apparmor.security.beta.kubernetes.io/c",
            "localhost/a",
            json!({"securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "b"}}}),
            "spec.containers[0].securityContext.appArmorProfile.localhostProfile: Forbidden: apparmor profile in annotation and field must match",
        ),
        (
            "controller.kubernetes.io/pod-deletion-cost",
            "-100",
            json!({}),
            "",
        ),
        (
            "controller.kubernetes.io/pod-deletion-cost",
            "+1",
            json!({}),
            "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"+1\": must be a 32bit integer",
        ),
        (
            "scheduler.alpha.kubernetes.io/tolerations",
            "[{\"key\": \"k\", \"operator\": \"X\"}]",
            json!({}),
            "metadata.annotations.scheduler.alpha.kubernetes.io/tolerations[0].operator: Unsupported value: \"X\": supported values: \"Equal\", \"Exists\"",
        ),
        (
            "kubernetes.io/config.mirror",
            "h",
            json!({}),
            "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"h\": must set spec.nodeName if mirror pod annotation is set",
        ),
    ] {
        let mut pod = pod(&spec);
        pod["metadata"]["annotations"] = json!({key: value});
        let mut causes = Causes::default();
        annotations::validate(
            &pod["metadata"],
            &pod["spec"],
            "metadata.annotations",
            &mut causes,
        );
        whole::validate_new(&pod, &mut causes);
        assert_eq!(texts(causes).join("; "), want, "{key} {value}");
    }
}

#[test]
fn templates_go_by_the_same_rules() {
    for (spec, want) in [
        (
            json!({"hostNetwork": true, "containers": [{"name": "c", "image": " ", "ports": [{"containerPort": 80}]}]}),
            "",
        ),
        (
            json!({"serviceAccountName": "", "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
            "",
        ),
        (
            json!({"tolerations": [{"key": "k", "effect": "X"}]}),
            "spec.template.spec.tolerations[0].effect: Unsupported value: \"X\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ),
    ] {
        let mut template = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
        json_patch::merge(&mut template["spec"], &spec);
        let mut object = json!({"spec": {"template": template}});
        defaults::template(&mut object, "spec.template");
        let mut causes = Causes::default();
        template::validate_template(
            &object,
            "spec.template",
            template::Restarts::Always,
            &mut causes,
        );
        assert_eq!(texts(causes).join("; "), want, "{spec}");
    }
}

#[test]
fn what_is_told() {
    for (spec, want) in [
        (json!({}), ""),
        (
            json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}),
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
        ),
        (
            json!({"volumes": [{"name": "v", "gitRepo": {}}]}),
            "spec.volumes[0].gitRepo: deprecated in v1.11",
        ),
        (
            json!({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}),
            "spec.imagePullSecrets[1].name: duplicate name \"a\"",
        ),
        (
            json!({"imagePullSecrets": [{}]}),
            "spec.imagePullSecrets[0].name: invalid empty name \"\"",
        ),
        (
            json!({"terminationGracePeriodSeconds": -1}),
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
        ),
        (
            json!({"topologySpreadConstraints": [{"topologyKey": "a"}]}),
            "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
        ),
        (
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a"}]}}}),
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null labelSelector results in matching no pod",
        ),
        (
            container(&json!({"resources": {"requests": {"memory": "100m"}}})),
            "spec.containers[0].resources.requests[memory]: fractional byte value \"100m\" is invalid, must be an integer",
        ),
        (
            container(
                &json!({"env": [{"name": "a", "value": "x"}, {"name": "a", "value": "$(a)y"}]}),
            ),
            "",
        ),
        (
            container(&json!({"env": [{"name": "a", "value": "x"}, {"name": "a", "value": "y"}]})),
            "spec.containers[0].env[1]: hides previous definition of \"a\", which may be dropped when using apply",
        ),
        (
            container(
                &json!({"ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "UDP"}]}),
            ),
            "",
        ),
        (
            container(&json!({"ports": [{"containerPort": 1}, {"containerPort": 1}]})),
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        ),
        (
            container(
                &json!({"ports": [{"containerPort": 1, "hostPort": 2}, {"containerPort": 1}]}),
            ),
            "spec.containers[0].ports[1]: overlapping port definition with spec.containers[0].ports[0]",
        ),
        (
            container(
                &json!({"ports": [{"containerPort": 1, "hostPort": 2, "hostIP": "1.1.1.1"}, {"containerPort": 1, "hostPort": 2}]}),
            ),
            "spec.containers[0].ports[1]: dangerously ambiguous port definition with spec.containers[0].ports[0]",
        ),
        (
            container(&json!({"ports": [{"containerPort": 1, "hostIP": "1.1.1.1"}]})),
            "spec.containers[0].ports[0]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:1 Protocol:TCP HostIP:1.1.1.1}",
        ),
    ] {
        assert_eq!(warnings::pod(&pod(&spec), None).join("; "), want, "{spec}");
    }
    let mut dotted = pod(&json!({}));
    dotted["metadata"]["name"] = json!("a.b");
    let said = warnings::pod(&dotted, None).join("; ");
    assert!(
        said.starts_with("metadata.name: this is used in the Pod's hostname"),
        "{said}"
    );
    assert_eq!(warnings::pod(&dotted, Some(&dotted)), [""; 0]);
    let set = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": -1}}}});
    let told = warnings::template("spec.template", &set, None).join("; ");
    assert!(
        told.starts_with("spec.template.spec.terminationGracePeriodSeconds: must be"),
        "{told}"
    );
    assert_eq!(
        warnings::template("spec.template", &set, Some(&set)),
        [""; 0]
    );
}
