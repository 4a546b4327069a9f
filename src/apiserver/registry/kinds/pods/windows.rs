//! What a pod may say about Windows; such a pod can be stored, though no node here runs it.

use serde_json::Value;

use super::whole::VISITED;
use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{at, flag, has, items, text},
    },
};

const LONGEST_SPEC: usize = 64 * 1024;
const LONGEST_DOMAIN: usize = 255;
const LONGEST_USER: usize = 104;

/// `windowsOptions` of the security context at `path`.
pub fn options(context: &Value, path: &str, causes: &mut Causes) {
    let Some(options) = at(context, "windowsOptions") else {
        return;
    };
    let path = format!("{path}.windowsOptions");
    let given = |field: &str| at(options, field).and_then(Value::as_str);
    if let Some(name) = given("gmsaCredentialSpecName") {
        let own = format!("{path}.gmsaCredentialSpecName");
        names::report(names::dns_subdomain(name), name, &own, causes);
    }
    if let Some(spec) = given("gmsaCredentialSpec") {
        let own = format!("{path}.gmsaCredentialSpec");
        if spec.is_empty() {
            let detail = "gmsaCredentialSpec cannot be an empty string";
            causes.invalid(own, spec, detail);
        } else if spec.len() > LONGEST_SPEC {
            causes.invalid(own, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(name) = given("runAsUserName") {
        for why in wrong_user(name) {
            causes.invalid(format!("{path}.runAsUserName"), name, why);
        }
    }
}

/// What is wrong with `[DOMAIN\]USER`.
fn wrong_user(name: &str) -> Vec<&'static str> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if name.chars().any(|one| one.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    let (domain, user) = match name.split_once('\\') {
        None => (None, name),
        Some((_, user)) if user.contains('\\') => {
            return vec!["runAsUserName cannot contain more than one backslash"];
        }
        Some((domain, user)) => (Some(domain), user),
    };
    let mut wrong = Vec::new();
    if let Some(domain) = domain {
        if domain.len() > LONGEST_DOMAIN {
            wrong.push("runAsUserName's Domain length must be under 256 characters");
        }
        if !is_net_bios(domain) && !is_dns(domain) {
            wrong.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        wrong.push("runAsUserName's User cannot be empty");
    } else if user.len() > LONGEST_USER {
        wrong.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|one| ". ".contains(one)) {
        wrong.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains([
        '"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']',
    ]) {
        wrong.push(
            "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]",
        );
    }
    wrong
}

fn is_net_bios(domain: &str) -> bool {
    (1..=15).contains(&domain.chars().count())
        && !domain.starts_with('.')
        && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|'])
}

fn is_dns(domain: &str) -> bool {
    domain
        .split('.')
        .all(|label| names::dns_label(&label.to_lowercase()).is_empty())
}

/// A pod whose containers are processes of the node has only such ones, on the node's network.
pub fn host_process(spec: &Value, path: &str, causes: &mut Causes) {
    let of = |context: &Value| {
        at(context, "securityContext.windowsOptions.hostProcess").and_then(Value::as_bool)
    };
    let pod = of(spec);
    let (mut all, mut processes) = (0_usize, 0_usize);
    for list in VISITED {
        for (index, container) in items(spec, list).iter().enumerate() {
            all += 1;
            let own = of(container);
            if let (Some(pod), Some(own)) = (pod, own)
                && pod != own
            {
                let field =
                    format!("{path}.{list}[{index}].securityContext.windowsOptions.hostProcess");
                let detail = format!(
                    "pod hostProcess value must be identical if both are specified, was {pod}"
                );
                causes.invalid(field, own, &detail);
            }
            processes += usize::from(own.or(pod).unwrap_or_default());
        }
    }
    if processes == 0 {
        return;
    }
    if processes != all {
        causes.invalid(path, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers");
    }
    if !flag(spec, "hostNetwork") {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        causes.invalid(format!("{path}.hostNetwork"), false, detail);
    }
}

/// Which fields a pod that says to be for Windows must not have, and likewise for Linux.
pub fn system(spec: &Value, path: &str, causes: &mut Causes) {
    const OF_POD: [&str; 15] = [
        "securityContext.appArmorProfile",
        "securityContext.seLinuxOptions",
        "securityContext.seccompProfile",
        "securityContext.fsGroup",
        "securityContext.fsGroupChangePolicy",
        "securityContext.sysctls",
        "securityContext.runAsUser",
        "securityContext.runAsGroup",
        "securityContext.supplementalGroups",
        "securityContext.supplementalGroupsPolicy",
        "securityContext.seLinuxChangePolicy",
        "hostUsers",
        "hostPID",
        "hostIPC",
        "shareProcessNamespace",
    ];
    const OF_CONTAINER: [&str; 10] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    if !has(spec, "os") {
        return;
    }
    let (of_pod, of_container, detail) = match text(spec, "os.name") {
        "linux" => (
            &["securityContext.windowsOptions"][..],
            &["windowsOptions"][..],
            "windows options cannot be set for a linux pod",
        ),
        "windows" => (
            &OF_POD[..],
            &OF_CONTAINER[..],
            "cannot be set for a windows pod",
        ),
        "" => return causes.required(format!("{path}.os.name"), ""),
        other => {
            return causes.unsupported(format!("{path}.os"), other, &["linux", "windows"]);
        }
    };
    for field in of_pod {
        let set = match at(spec, field) {
            Some(Value::Bool(set)) if matches!(*field, "hostPID" | "hostIPC") => *set,
            Some(Value::Array(list)) if *field == "securityContext.sysctls" => !list.is_empty(),
            value => value.is_some(),
        };
        if set {
            causes.forbidden(format!("{path}.{field}"), detail);
        }
    }
    for list in VISITED {
        for (index, one) in items(spec, list).iter().enumerate() {
            if causes.is_full() {
                return;
            }
            for field in of_container {
                if has(one, &format!("securityContext.{field}")) {
                    let path = format!("{path}.{list}[{index}].securityContext.{field}");
                    causes.forbidden(path, detail);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::wrong_user;

    #[test]
    fn names_of_users() {
        for (name, want) in [
            ("ContainerUser", ""),
            ("NT AUTHORITY\\NETWORK SERVICE", ""),
            ("my.domain\\user", ""),
            ("", "runAsUserName cannot be an empty string"),
            ("a\u{1}", "runAsUserName cannot contain control characters"),
            (
                "a\\b\\c",
                "runAsUserName cannot contain more than one backslash",
            ),
            ("a\\", "runAsUserName's User cannot be empty"),
            (
                ". .",
                "runAsUserName's User cannot contain only periods or spaces",
            ),
            (
                "a?b\\c",
                "runAsUserName's Domain doesn't match the NetBios nor the DNS format",
            ),
            (
                "a@b",
                "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]",
            ),
        ] {
            assert_eq!(wrong_user(name).join("; "), want, "{name:?}");
        }
        let long = "x".repeat(105);
        assert_eq!(
            wrong_user(&long),
            ["runAsUserName's User length must not be longer than 104 characters"]
        );
    }
}
