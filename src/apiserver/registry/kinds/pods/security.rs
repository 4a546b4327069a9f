//! Validation of what pods' and containers' security contexts have in common, and of sysctls.

use serde_json::Value;

use super::{paths, windows};
use crate::apiserver::registry::{
    Causes,
    kinds::value::{at, flag, has, items, number, text},
};

const LARGEST_ID: i64 = i32::MAX as i64;
const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";

const LONGEST_SYSCTL: usize = 253;
const SYSCTL_FORM: &str = "must have at most 253 characters and match regex \
    ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";

/// Whose users a pod's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    Host,
    Own,
}

impl Users {
    pub fn of(spec: &Value) -> Self {
        match at(spec, "hostUsers") {
            Some(Value::Bool(false)) => Self::Own,
            _ => Self::Host,
        }
    }
}

/// The `securityContext` found at `path` of a pod's spec.
pub fn of_pod(spec: &Value, path: &str, causes: &mut Causes) {
    let Some(context) = at(spec, "securityContext") else {
        return;
    };
    ids(
        context,
        &["fsGroup", "runAsUser", "runAsGroup"],
        path,
        causes,
    );
    for (index, group) in items(context, "supplementalGroups").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        if let Some(id) = group.as_i64() {
            in_range(id, format!("{path}.supplementalGroups[{index}]"), causes);
        }
    }
    sysctls(spec, context, path, causes);
    let policy = |field: &str, known: [&str; 2], causes: &mut Causes| {
        let policy = text(context, field);
        if has(context, field) && !known.contains(&policy) {
            causes.unsupported(format!("{path}.{field}"), policy, &known);
        }
    };
    policy("fsGroupChangePolicy", ["Always", "OnRootMismatch"], causes);
    seccomp(context, path, causes);
    windows::options(context, path, causes);
    app_armor(context, path, causes);
    policy("supplementalGroupsPolicy", ["Merge", "Strict"], causes);
    policy("seLinuxChangePolicy", ["MountOption", "Recursive"], causes);
}

/// A container's `securityContext` found at `path`.
pub fn of_container(context: &Value, users: Users, path: &str, causes: &mut Causes) {
    if context.is_null() {
        return;
    }
    ids(context, &["runAsUser", "runAsGroup"], path, causes);
    if has(context, "procMount") {
        let (own, proc) = (format!("{path}.procMount"), text(context, "procMount"));
        if !matches!(proc, "Default" | "Unmasked") {
            causes.unsupported(&own, proc, &["Default", "Unmasked"]);
        }
        if proc == "Unmasked" && users == Users::Host {
            let detail = "`hostUsers` must be false to use `Unmasked`";
            causes.invalid(own, proc, detail);
        }
    }
    seccomp(context, path, causes);
    escalation(context, path, causes);
    windows::options(context, path, causes);
    app_armor(context, path, causes);
}

fn escalation(context: &Value, path: &str, causes: &mut Causes) {
    if at(context, "allowPrivilegeEscalation") != Some(&Value::Bool(false)) {
        return;
    }
    if flag(context, "privileged") {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        causes.invalid(path, context, detail);
    }
    // As the API has always had it: under its other name the capability is let through.
    let mut added = items(context, "capabilities.add").iter();
    if added.any(|name| name == "CAP_SYS_ADMIN") {
        let detail =
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        causes.invalid(path, context, detail);
    }
}

fn ids(context: &Value, fields: &[&str], path: &str, causes: &mut Causes) {
    for field in fields {
        if let Some(id) = number(context, field) {
            in_range(id, format!("{path}.{field}"), causes);
        }
    }
}

fn in_range(id: i64, path: String, causes: &mut Causes) {
    if !(0..=LARGEST_ID).contains(&id) {
        causes.invalid(path, id, ID_RANGE);
    }
}

fn seccomp(context: &Value, path: &str, causes: &mut Causes) {
    const TYPES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
    let Some(profile) = at(context, "seccompProfile") else {
        return;
    };
    let path = format!("{path}.seccompProfile");
    let kind = text(profile, "type");
    if kind.is_empty() {
        causes.required(
            format!("{path}.type"),
            "type is required when seccompProfile is set",
        );
    } else if !TYPES.contains(&kind) {
        causes.unsupported(format!("{path}.type"), kind, &TYPES);
    }
    let path = format!("{path}.localhostProfile");
    let name = text(profile, "localhostProfile");
    match (kind == "Localhost", has(profile, "localhostProfile")) {
        (true, false) => causes.required(path, "must be set when seccomp type is Localhost"),
        (false, true) => causes.invalid(
            path,
            profile,
            "can only be set when seccomp type is Localhost",
        ),
        (false, false) => {}
        (true, true) => paths::descending(name, &path, causes),
    }
}

/// Bytes of a profile's name: a path's, less the zero.
const LONGEST_PROFILE: usize = 4095;

fn app_armor(context: &Value, path: &str, causes: &mut Causes) {
    const TYPES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
    let Some(profile) = at(context, "appArmorProfile") else {
        return;
    };
    let path = format!("{path}.appArmorProfile");
    let name = text(profile, "localhostProfile");
    let given = has(profile, "localhostProfile");
    let own = format!("{path}.localhostProfile");
    match text(profile, "type") {
        "Localhost" => {
            if name.trim() != name {
                causes.invalid(&own, name, "must not be padded with whitespace");
            } else if name.is_empty() {
                causes.required(&own, "must be set when AppArmor type is Localhost");
            }
            if name.len() > LONGEST_PROFILE {
                causes.push(
                    crate::apiserver::status::CauseType::FieldValueTooLong,
                    own,
                    format!("Too long: may not be more than {LONGEST_PROFILE} bytes"),
                );
            }
        }
        "RuntimeDefault" | "Unconfined" if given => {
            causes.invalid(own, name, "can only be set when AppArmor type is Localhost");
        }
        "RuntimeDefault" | "Unconfined" => {}
        "" => causes.required(
            format!("{path}.type"),
            "type is required when appArmorProfile is set",
        ),
        other => causes.unsupported(format!("{path}.type"), other, &TYPES),
    }
}

fn sysctls(spec: &Value, context: &Value, path: &str, causes: &mut Causes) {
    let mut names = std::collections::HashSet::new();
    for (index, sysctl) in items(context, "sysctls").iter().enumerate() {
        if causes.is_full() {
            break;
        }
        let path = format!("{path}.sysctls[{index}].name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            causes.required(&path, "");
        } else if !is_sysctl(name) {
            causes.invalid(&path, name, SYSCTL_FORM);
        } else if names.contains(name) {
            causes.duplicate(&path, name);
        }
        for field in ["hostNetwork", "hostIPC"] {
            if flag(spec, field) && namespace_of(name) == Some(field) {
                let detail = format!("may not be specified when '{field}' is true");
                causes.invalid(&path, name, &detail);
            }
        }
        names.insert(name);
    }
}

/// Which field of a pod takes away the namespace that a sysctl is part of.
fn namespace_of(name: &str) -> Option<&'static str> {
    let name = name.replace('/', ".");
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name == "kernel.sem" || of_ipc.iter().any(|prefix| name.starts_with(prefix)) {
        Some("hostIPC")
    } else {
        name.starts_with("net.").then_some("hostNetwork")
    }
}

/// Segments of a-z, 0-9, `-` and `_` between dots or slashes, each from a letter or digit to one.
fn is_sysctl(name: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let segment = |segment: &str| {
        let bytes = segment.as_bytes();
        bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain)
            && bytes.iter().all(|byte| plain(byte) || b"-_".contains(byte))
    };
    name.len() <= LONGEST_SYSCTL && name.split(['.', '/']).all(segment)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(check: fn(&Value, &str, &mut Causes), context: &Value) -> Vec<String> {
        let mut causes = Causes::default();
        check(context, "c", &mut causes);
        let causes = causes.0.into_iter();
        causes
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    fn pod(context: &Value, path: &str, causes: &mut Causes) {
        of_pod(&json!({"securityContext": context}), path, causes);
    }

    fn container(context: &Value, path: &str, causes: &mut Causes) {
        of_container(context, Users::Own, path, causes);
    }

    #[test]
    fn of_both() {
        for (context, want) in [
            (json!({}), ""),
            (json!({"runAsUser": 0, "runAsGroup": 2_147_483_647}), ""),
            (
                json!({"runAsUser": -1}),
                "c.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            ),
            (
                json!({"runAsGroup": 4_294_967_296_i64}),
                "c.runAsGroup: Invalid value: 4294967296: must be between 0 and 2147483647, inclusive",
            ),
            (json!({"seccompProfile": {"type": "RuntimeDefault"}}), ""),
            (
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}}),
                "",
            ),
            (
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a..b"}}),
                "",
            ),
            (
                json!({"seccompProfile": {}}),
                "c.seccompProfile.type: Required value: type is required when seccompProfile is set",
            ),
            (
                json!({"seccompProfile": {"type": "None"}}),
                "c.seccompProfile.type: Unsupported value: \"None\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\"",
            ),
            (
                json!({"seccompProfile": {"type": "Localhost"}}),
                "c.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            ),
            (
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../../x"}}),
                "c.seccompProfile.localhostProfile: Invalid value: \"../../x\": must not contain '..'",
            ),
            (
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "/x"}}),
                "c.seccompProfile.localhostProfile: Invalid value: \"/x\": must be a relative path",
            ),
        ] {
            for check in [pod, container] {
                assert_eq!(said(check, &context).join("; "), want, "{context}");
            }
        }
        let stray = json!({"seccompProfile": {"type": "Unconfined", "localhostProfile": "x"}});
        let found = said(container, &stray).join("; ");
        assert!(
            found.ends_with("can only be set when seccomp type is Localhost"),
            "{found}"
        );
    }

    #[test]
    fn of_pods() {
        for field in ["fsGroup", "supplementalGroups"] {
            for (id, refused) in [
                (0, false),
                (2_147_483_647, false),
                (-1, true),
                (1 << 31, true),
            ] {
                let context = match field {
                    "fsGroup" => json!({field: id}),
                    _ => json!({field: [1, id]}),
                };
                let found = said(pod, &context).join("; ");
                assert_eq!(found.contains(ID_RANGE), refused, "{context}: {found}");
            }
        }
        let twice = json!({"sysctls": [{"name": "a.b", "value": "1"}, {"name": "a.b", "value": "2"}, {"value": "3"}]});
        assert_eq!(
            said(pod, &twice),
            [
                "c.sysctls[1].name: Duplicate value: \"a.b\"",
                "c.sysctls[2].name: Required value"
            ]
        );
    }

    #[test]
    fn names_of_sysctls() {
        let (longest, long) = ("a".repeat(253), "a".repeat(254));
        for (name, taken) in [
            ("net.ipv4.tcp_rmem", true),
            ("net/ipv4/tcp_rmem", true),
            ("net.ipv4.conf.eth0/1.forwarding", true),
            ("kernel.shm-rmid", true),
            (longest.as_str(), true),
            (long.as_str(), false),
            ("net.ipv4.tcp_rmem\n", false),
            ("net.ipv4.tcp_rmem\nkernel.core_pattern", false),
            ("net..ipv4", false),
            ("net/../kernel", false),
            (".net", false),
            ("net.", false),
            ("_net", false),
            ("net._x", false),
            ("Net", false),
            ("net=1", false),
            ("net ipv4", false),
            ("n\u{e9}t", false),
        ] {
            let context = json!({"sysctls": [{"name": name, "value": "1"}]});
            let found = said(pod, &context).join("; ");
            assert_eq!(found.is_empty(), taken, "{name:?}: {found}");
            if !taken {
                assert!(found.ends_with(SYSCTL_FORM), "{found}");
            }
        }
    }
}
