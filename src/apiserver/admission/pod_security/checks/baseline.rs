//! The controls of the baseline: what is known to lead out of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Violation,
    pod::{
        Pod, Setters, capabilities as listed, containers, is_true, name, outside, plural, quoted,
        violation,
    },
};
use crate::apiserver::registry::kinds::value::{at, flag, has, items, number, text};

const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The node's default profile may be neither left nor replaced by none.
pub fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    let allowed = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let path = "appArmorProfile.type";
    let bad = |context: &Value| {
        at(context, path)
            .and_then(Value::as_str)
            .is_some_and(|kind| !allowed(kind))
    };
    let setters = pod.setters(bad);
    let mut values: Vec<String> = outside(pod.settings(path), allowed)
        .into_iter()
        .map(str::to_owned)
        .collect();
    let fine = |value: &str| {
        value.is_empty() || value == "runtime/default" || value.starts_with("localhost/")
    };
    let annotations: BTreeSet<String> = pod
        .annotations()
        .filter(|(key, value)| key.starts_with(APP_ARMOR) && !fine(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut who: Vec<String> = Vec::new();
    if !setters.is_empty() {
        who.push(setters.words());
    }
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    values.extend(annotations);
    violation(
        plural(
            "forbidden AppArmor profile",
            "forbidden AppArmor profiles",
            values.len(),
        ),
        format!(
            "{} must not set AppArmor profile type to {}",
            who.join(" and "),
            quoted(values.iter().map(String::as_str))
        ),
    )
}

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    added_beyond(pod, &CAPABILITIES).map(|detail| Violation {
        reason: "non-default capabilities".to_owned(),
        detail,
    })
}

/// Who adds other capabilities than those allowed.
pub fn added_beyond(pod: &Pod<'_>, allowed: &[&str]) -> Option<String> {
    let allowed = |name: &str| allowed.contains(&name);
    let others = |container| outside(listed(container, "add").iter(), allowed);
    let bad = pod.containers_where(|container| !others(container).is_empty());
    if bad.is_empty() {
        return None;
    }
    let added: BTreeSet<&str> = pod.containers().flat_map(others).collect();
    Some(format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(&bad),
        quoted(added)
    ))
}

pub fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| flag(pod.spec(), field))
        .map(|field| format!("{field}=true"))
        .collect();
    match shared.is_empty() {
        true => None,
        false => violation("host namespaces", shared.join(", ")),
    }
}

pub fn host_paths(pod: &Pod<'_>) -> Option<Violation> {
    let volumes = pod.volumes().iter();
    let bad: Vec<&str> = volumes
        .filter(|volume| has(volume, "hostPath"))
        .map(name)
        .collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("volume", "volumes", bad.len());
    violation("hostPath volumes", format!("{word} {}", quoted(bad)))
}

pub fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let of = |container| {
        let ports = items(container, "ports").iter();
        ports.filter_map(|port| number(port, "hostPort").filter(|port| *port != 0))
    };
    let bad = pod.containers_where(|container| of(container).next().is_some());
    if bad.is_empty() {
        return None;
    }
    let ports: BTreeSet<String> = pod
        .containers()
        .flat_map(of)
        .map(|port| port.to_string())
        .collect();
    violation(
        "hostPort",
        format!(
            "{} {} {} {}",
            containers(&bad),
            plural("uses", "use", bad.len()),
            plural("hostPort", "hostPorts", ports.len()),
            ports.into_iter().collect::<Vec<_>>().join(", ")
        ),
    )
}

/// A probe or a hook with a host of its own makes the node ask it.
pub fn hosts(pod: &Pod<'_>) -> Option<Violation> {
    const ASKING: [&str; 5] = [
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle.postStart",
        "lifecycle.preStop",
    ];
    fn of(container: &Value) -> impl Iterator<Item = &str> {
        let asking = ASKING.into_iter().filter_map(|path| at(container, path));
        let hosts = asking.flat_map(|one| [text(one, "httpGet.host"), text(one, "tcpSocket.host")]);
        hosts.filter(|host| !host.is_empty())
    }
    let bad: BTreeSet<&str> = pod
        .containers_where(|container| of(container).next().is_some())
        .into_iter()
        .collect();
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<&str> = bad.into_iter().collect();
    let hosts: BTreeSet<&str> = pod.containers().flat_map(of).collect();
    violation(
        "probe or lifecycle host",
        format!(
            "{} {} {} {}",
            containers(&bad),
            plural("uses", "use", bad.len()),
            plural(
                "probe or lifecycle host",
                "probe or lifecycle hosts",
                hosts.len()
            ),
            quoted(hosts)
        ),
    )
}

pub fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let bad = pod.containers_where(|container| flag(container, "securityContext.privileged"));
    match bad.is_empty() {
        true => None,
        false => violation(
            "privileged",
            format!(
                "{} must not set securityContext.privileged=true",
                containers(&bad)
            ),
        ),
    }
}

pub fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    fn of(container: &Value) -> Option<&str> {
        let kind = at(container, "securityContext.procMount")?.as_str()?;
        (kind != "Default").then_some(kind)
    }
    let bad = pod.containers_where(|container| of(container).is_some());
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = pod.containers().filter_map(of).collect();
    violation(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers(&bad),
            quoted(kinds)
        ),
    )
}

pub fn proc_mount_of_host_users(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() {
        None
    } else {
        proc_mount(pod)
    }
}

const SELINUX_0: [&str; 4] = ["", "container_t", "container_init_t", "container_kvm_t"];
const SELINUX_31: [&str; 5] = [
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];

pub fn selinux_0(pod: &Pod<'_>) -> Option<Violation> {
    selinux(pod, &SELINUX_0)
}

pub fn selinux_31(pod: &Pod<'_>) -> Option<Violation> {
    selinux(pod, &SELINUX_31)
}

fn selinux(pod: &Pod<'_>, types: &[&str]) -> Option<Violation> {
    let allowed = |kind: &str| types.contains(&kind);
    let (user, role) = ("seLinuxOptions.user", "seLinuxOptions.role");
    let setters = pod.setters(|context| {
        !allowed(text(context, "seLinuxOptions.type"))
            || !text(context, user).is_empty()
            || !text(context, role).is_empty()
    });
    if setters.is_empty() {
        return None;
    }
    let mut what = Vec::new();
    let kinds = outside(pod.settings("seLinuxOptions.type"), allowed);
    if !kinds.is_empty() {
        let word = plural("type", "types", kinds.len());
        what.push(format!("{word} {}", quoted(kinds)));
    }
    for (path, words) in [(user, "user may not be set"), (role, "role may not be set")] {
        if !outside(pod.settings(path), str::is_empty).is_empty() {
            what.push(words.to_owned());
        }
    }
    violation(
        "seLinuxOptions",
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters.words(),
            what.join("; ")
        ),
    )
}

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Before there were fields.
pub fn seccomp_annotations(pod: &Pod<'_>) -> Option<Violation> {
    let fine = |value: &str| {
        matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/")
    };
    let concerns = |key: &str| {
        key == SECCOMP_POD
            || key
                .strip_prefix(SECCOMP_CONTAINER)
                .is_some_and(|named| pod.containers().any(|container| name(container) == named))
    };
    let bad: BTreeSet<String> = pod
        .annotations()
        .filter(|(key, value)| concerns(key) && !fine(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", bad.len());
    let bad = bad.into_iter().collect::<Vec<_>>().join(", ");
    violation("seccompProfile", format!("forbidden {word} {bad}"))
}

pub fn is_seccomp(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

/// Who sets a profile that is none.
pub fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    let setters = pod.setters(|context| {
        has(context, "seccompProfile") && !is_seccomp(text(context, "seccompProfile.type"))
    });
    if setters.is_empty() {
        return None;
    }
    let kinds = outside(pod.settings("seccompProfile.type"), is_seccomp);
    violation(
        "seccompProfile",
        format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters.words(),
            quoted(kinds)
        ),
    )
}

/// Namespaced, and without effect on others of the node; in the order in which they were allowed.
const SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];

pub fn sysctls_0(pod: &Pod<'_>) -> Option<Violation> {
    sysctls(pod, 5)
}

pub fn sysctls_27(pod: &Pod<'_>) -> Option<Violation> {
    sysctls(pod, 6)
}

pub fn sysctls_29(pod: &Pod<'_>) -> Option<Violation> {
    sysctls(pod, 10)
}

pub fn sysctls_32(pod: &Pod<'_>) -> Option<Violation> {
    sysctls(pod, 12)
}

pub fn sysctls_37(pod: &Pod<'_>) -> Option<Violation> {
    sysctls(pod, 14)
}

fn sysctls(pod: &Pod<'_>, allowed: usize) -> Option<Violation> {
    let set = items(pod.spec(), "securityContext.sysctls")
        .iter()
        .map(name);
    let bad: Vec<&str> = set
        .filter(|name| !SYSCTLS[..allowed].contains(name))
        .collect();
    match bad.is_empty() {
        true => None,
        false => violation("forbidden sysctls", bad.join(", ")),
    }
}

pub fn host_process(pod: &Pod<'_>) -> Option<Violation> {
    let setters: Setters<'_> =
        pod.setters(|context| is_true(context, "windowsOptions.hostProcess"));
    match setters.is_empty() {
        true => None,
        false => violation(
            "hostProcess",
            format!(
                "{} must not set securityContext.windowsOptions.hostProcess=true",
                setters.words()
            ),
        ),
    }
}
