//! Which kernel parameters a pod may set. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;

use super::Refused;

/// Known to touch nothing outside the pod's own namespaces.
const SAFE: [&str; 15] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_ecn",
];

/// One page, as the kernel reads.
const LONGEST_VALUE: usize = 4096;

/// The pod's parameters by dotted name.
pub fn sysctls(spec: &PodSpec) -> Result<BTreeMap<String, String>, Refused> {
    let wanted = spec
        .security_context
        .as_ref()
        .and_then(|context| context.sysctls.as_ref());
    let mut checked = BTreeMap::new();
    for sysctl in wanted.into_iter().flatten() {
        let name = dotted(&sysctl.name);
        let refused = |why: &str| Refused {
            reason: "SysctlForbidden",
            message: format!("forbidden sysctl: {:?} {why}", sysctl.name),
        };
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return Err(refused("not allowed with host net enabled"));
        }
        if !name.starts_with("net.") && spec.host_ipc == Some(true) {
            return Err(refused("not allowed with host ipc enabled"));
        }
        if !SAFE.contains(&name.as_str()) {
            return Err(refused("not allowlisted"));
        }
        if !is_plain(&sysctl.value) {
            return Err(refused(&format!(
                "has the value {:?}: only letters, digits, blanks and \",.-_:/\" may be in one",
                sysctl.value.chars().take(64).collect::<String>()
            )));
        }
        checked.insert(name, sysctl.value.clone());
    }
    Ok(checked)
}

/// Numbers, ranges and lists are all that the kernel takes for these; a line's end or a sign of some
/// tool's own is an attempt to set something else with it.
fn is_plain(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || " \t,.-_:/".contains(c);
    value.len() <= LONGEST_VALUE && value.chars().all(plain)
}

/// If the first separator is a slash, slashes separate and dots belong to names.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => {
            let swapped = name.chars().map(|character| match character {
                '/' => '.',
                '.' => '/',
                other => other,
            });
            swapped.collect()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_safe_ones() {
        for (name, host, want) in [
            ("kernel.shm_rmid_forced", json!({}), None),
            ("net/ipv4/tcp_syncookies", json!({}), None),
            (
                "kernel.msgmax",
                json!({}),
                Some("forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
            ),
            (
                "net.ipv4.tcp_syncookies",
                json!({"hostNetwork": true}),
                Some(
                    "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
                ),
            ),
            (
                "kernel.shm_rmid_forced",
                json!({"hostIPC": true}),
                Some(
                    "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled",
                ),
            ),
        ] {
            let mut spec = host;
            spec["containers"] = json!([]);
            spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let got = sysctls(&spec).err().map(|refused| refused.message);
            assert_eq!(got.as_deref(), want, "{name}");
        }
    }

    #[test]
    fn values_that_smuggle() {
        for (value, taken) in [
            ("1024 65535", true),
            ("4096\t87380 6291456", true),
            ("1-2,5", true),
            ("", true),
            ("1\nkernel.core_pattern=|/bin/sh", false),
            ("1+kernel.core_pattern=|/bin/sh", false),
            ("1\r", false),
            ("1=2", false),
            ("|/bin/sh", false),
            ("1\0", false),
        ] {
            let spec: PodSpec = serde_json::from_value(json!({
                "containers": [],
                "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": value}]},
            }))
            .unwrap();
            let got = sysctls(&spec);
            assert_eq!(got.is_ok(), taken, "{value:?}");
            if let Err(refused) = got {
                assert_eq!(refused.reason, "SysctlForbidden");
                assert!(!refused.message.contains('\n'), "{}", refused.message);
            }
        }
    }
}
