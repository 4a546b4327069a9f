//! A pod that meets everything, and what each change of it violates from which version on.

use serde_json::{Value, json};

use super::*;
use crate::apiserver::registry::kinds::value::set;

fn good() -> Value {
    let context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    json!({"metadata": {"name": "p"}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [{"name": "i", "image": "i", "securityContext": context}],
        "containers": [{"name": "c", "image": "i", "securityContext": context}],
        "volumes": [{"name": "e", "emptyDir": {}}]}})
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut pod = good();
    for (path, value) in changes {
        match path.strip_prefix("c.") {
            Some(path) => set(&mut pod["spec"]["containers"][0], path, value.clone()),
            None => set(&mut pod, path, value.clone()),
        }
    }
    pod
}

fn found(pod: &Value, level: Level, minor: u32) -> String {
    let standard = Standard {
        level,
        version: Version::Minor(minor),
    };
    details(&violations(standard, &Pod(pod)))
}

#[test]
fn the_table_is_in_order() {
    for table in [BASELINE, RESTRICTED] {
        let names: Vec<&str> = table.iter().map(|control| control.name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(names, sorted);
        for control in table {
            let since: Vec<u32> = control.forms.iter().map(|(since, _)| *since).collect();
            assert!(since.is_sorted_by(|a, b| a < b), "{}", control.name);
            assert!(since.iter().all(|minor| *minor <= NEWEST));
            let weaker = control.instead_of;
            assert!(weaker.is_empty() || BASELINE.iter().any(|control| control.name == weaker));
        }
    }
}

#[test]
fn a_good_pod_meets_every_version() {
    for minor in 0..=NEWEST + 1 {
        assert_eq!(found(&good(), Level::Restricted, minor), "", "v1.{minor}");
    }
    assert_eq!(found(&json!({"spec": {}}), Level::Privileged, 37), "");
}

/// Each is fine in the version before the first one named.
#[test]
fn what_the_baseline_forbids() {
    let sysctl = |name: &str| json!([{"name": name, "value": "1"}]);
    for (changes, since, want) in [
        (
            vec![("c.securityContext.privileged", json!(true))],
            0,
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            vec![
                ("spec.hostNetwork", json!(true)),
                ("spec.hostIPC", json!(true)),
            ],
            0,
            "host namespaces (hostNetwork=true, hostIPC=true)",
        ),
        (
            vec![(
                "spec.volumes",
                json!([{"name": "a", "hostPath": {}}, {"name": "b", "hostPath": {}}]),
            )],
            0,
            "hostPath volumes (volumes \"a\", \"b\")",
        ),
        (
            vec![(
                "c.ports",
                json!([{"hostPort": 9090}, {"hostPort": 8080}, {"containerPort": 80}]),
            )],
            0,
            "hostPort (container \"c\" uses hostPorts 8080, 9090)",
        ),
        (
            vec![(
                "c.securityContext.capabilities.add",
                json!(["SYS_TIME", "CHOWN", "NET_RAW"]),
            )],
            0,
            "non-default capabilities (container \"c\" must not include \"NET_RAW\", \"SYS_TIME\" in securityContext.capabilities.add)",
        ),
        (
            vec![
                (
                    "spec.securityContext.appArmorProfile.type",
                    json!("Unconfined"),
                ),
                (
                    "c.securityContext.appArmorProfile.type",
                    json!("Unconfined"),
                ),
            ],
            0,
            "forbidden AppArmor profile (pod and container \"c\" must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            vec![(
                "metadata.annotations",
                json!({"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}),
            )],
            0,
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"container.apparmor.security.beta.kubernetes.io/c=\"unconfined\"\")",
        ),
        (
            vec![(
                "spec.securityContext.seLinuxOptions",
                json!({"type": "spc_t", "user": "u", "role": "r"}),
            )],
            0,
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set; role may not be set)",
        ),
        (
            vec![("c.securityContext.procMount", json!("Unmasked"))],
            0,
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            vec![("c.securityContext.seccompProfile.type", json!("Unconfined"))],
            19,
            "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            vec![("spec.securityContext.sysctls", sysctl("kernel.msgmax"))],
            0,
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            vec![(
                "spec.securityContext.windowsOptions.hostProcess",
                json!(true),
            )],
            0,
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            vec![
                ("c.livenessProbe.httpGet.host", json!("10.0.0.1")),
                ("c.lifecycle.preStop.tcpSocket.host", json!("db")),
            ],
            34,
            "probe or lifecycle host (container \"c\" uses probe or lifecycle hosts \"10.0.0.1\", \"db\")",
        ),
    ] {
        let pod = with(&changes);
        for minor in [since, NEWEST] {
            assert_eq!(found(&pod, Level::Baseline, minor), want, "v1.{minor}");
        }
        if since > 0 {
            assert_eq!(
                found(&pod, Level::Baseline, since - 1),
                "",
                "v1.{}",
                since - 1
            );
        }
        assert!(!found(&pod, Level::Restricted, NEWEST).is_empty(), "{want}");
    }
}

#[test]
fn what_versions_have_loosened() {
    let sysctl = |name: &str| with(&[("spec.securityContext.sysctls", json!([{"name": name}]))]);
    let own_users =
        |path: &str, value: Value| with(&[("spec.hostUsers", json!(false)), (path, value)]);
    let windows =
        |path: &str, value: Value| with(&[("spec.os.name", json!("windows")), (path, value)]);
    let engine = with(&[(
        "spec.securityContext.seLinuxOptions.type",
        json!("container_engine_t"),
    )]);
    for (pod, level, last_bad) in [
        (
            sysctl("net.ipv4.ip_local_reserved_ports"),
            Level::Baseline,
            26,
        ),
        (sysctl("net.ipv4.tcp_keepalive_time"), Level::Baseline, 28),
        (sysctl("net.ipv4.tcp_rmem"), Level::Baseline, 31),
        (sysctl("net.ipv4.tcp_notsent_lowat"), Level::Baseline, 36),
        (engine, Level::Baseline, 30),
        (
            own_users("c.securityContext.procMount", json!("Unmasked")),
            Level::Baseline,
            34,
        ),
        (
            own_users("spec.securityContext.runAsNonRoot", Value::Null),
            Level::Restricted,
            34,
        ),
        (
            own_users("c.securityContext.runAsUser", json!(0)),
            Level::Restricted,
            34,
        ),
        (
            windows("c.securityContext.capabilities", Value::Null),
            Level::Restricted,
            24,
        ),
        (
            windows("c.securityContext.allowPrivilegeEscalation", Value::Null),
            Level::Restricted,
            24,
        ),
        (
            windows("spec.securityContext.seccompProfile", Value::Null),
            Level::Restricted,
            24,
        ),
    ] {
        assert_ne!(found(&pod, level, last_bad), "", "v1.{last_bad}: {pod}");
        assert_eq!(
            found(&pod, level, last_bad + 1),
            "",
            "v1.{}: {pod}",
            last_bad + 1
        );
    }
    // At the restricted level the mount of /proc stays as it is, whoever root is.
    let unmasked = own_users("c.securityContext.procMount", json!("Unmasked"));
    assert_ne!(found(&unmasked, Level::Restricted, NEWEST), "");
}

#[test]
fn what_the_restricted_level_asks_for() {
    for (changes, since, want) in [
        (
            vec![("c.securityContext.allowPrivilegeEscalation", Value::Null)],
            8,
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
        ),
        (
            vec![(
                "c.securityContext.capabilities",
                json!({"drop": ["NET_RAW"], "add": ["CHOWN", "NET_BIND_SERVICE"]}),
            )],
            22,
            "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]; container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
        ),
        (
            vec![(
                "spec.volumes",
                json!([{"name": "h", "hostPath": {}}, {"name": "n", "nfs": {}}, {"name": "i", "image": {}}]),
            )],
            0,
            "restricted volume types (volumes \"h\", \"n\" use restricted volume types \"hostPath\", \"nfs\")",
        ),
        (
            vec![("spec.securityContext.runAsNonRoot", Value::Null)],
            0,
            "runAsNonRoot != true (pod or containers \"i\", \"c\" must set securityContext.runAsNonRoot=true)",
        ),
        (
            vec![
                ("spec.securityContext.runAsNonRoot", json!(false)),
                ("c.securityContext.runAsNonRoot", json!(false)),
            ],
            0,
            "runAsNonRoot != true (pod and container \"c\" must not set securityContext.runAsNonRoot=false)",
        ),
        (
            vec![("spec.securityContext.runAsUser", json!(0))],
            23,
            "runAsUser=0 (pod must not set runAsUser=0)",
        ),
        (
            vec![
                ("spec.securityContext.seccompProfile", Value::Null),
                ("c.securityContext.seccompProfile.type", json!("Localhost")),
            ],
            19,
            "seccompProfile (pod or container \"i\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        ),
    ] {
        let pod = with(&changes);
        assert_eq!(found(&pod, Level::Restricted, NEWEST), want);
        assert_eq!(found(&pod, Level::Restricted, since), want, "v1.{since}");
        if since > 0 {
            assert_eq!(
                found(&pod, Level::Restricted, since - 1),
                "",
                "v1.{}",
                since - 1
            );
        }
    }
}

#[test]
fn before_fields_there_were_annotations() {
    let pod = with(&[(
        "metadata.annotations",
        json!({
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
        "container.seccomp.security.alpha.kubernetes.io/c": "docker/default",
        "container.seccomp.security.alpha.kubernetes.io/gone": "unconfined"}),
    )]);
    let want = "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")";
    assert_eq!(found(&pod, Level::Baseline, 18), want);
    assert_eq!(found(&pod, Level::Baseline, 19), "");
}

#[test]
fn all_sorts_of_containers_are_looked_at_in_order() {
    let mut pod = json!({"spec": {}});
    for list in ["ephemeralContainers", "containers", "initContainers"] {
        pod["spec"][list] = json!([{"name": list, "securityContext": {"privileged": true}}]);
    }
    assert_eq!(
        found(&pod, Level::Baseline, NEWEST),
        "privileged (containers \"initContainers\", \"containers\", \"ephemeralContainers\" must not set securityContext.privileged=true)"
    );
    let plain = json!({"spec": {"containers": [{"name": "nginx"}]}});
    assert_eq!(
        found(&plain, Level::Restricted, NEWEST),
        "allowPrivilegeEscalation != false (container \"nginx\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (container \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or container \"nginx\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
}
