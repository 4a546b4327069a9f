//! The controls of the Pod Security Standards, as a table with one interpreter. Pure.
//!
//! A control is a function of a pod (or of a template) and may have several forms, each from one
//! version of the standard on. `baseline.rs` and `restricted.rs` have the functions, `pod.rs` how
//! they look at a pod and name what they find.
//! Always true: rows are sorted by name within a level, for that is the order of a refusal's words.

mod baseline;
mod pod;
mod restricted;
#[cfg(test)]
mod tests;

pub use pod::Pod;

use super::policy::{Level, Standard, Version};

/// One control that a pod does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In few words: `host namespaces`.
    pub reason: String,
    /// Where: `hostPID=true`.
    pub detail: String,
}

type Check = fn(&Pod<'_>) -> Option<Violation>;

struct Control {
    name: &'static str,
    /// From which minor version on it has which form; rising.
    forms: &'static [(u32, Check)],
    /// The weaker control of the baseline whose place it takes.
    instead_of: &'static str,
}

const fn control(name: &'static str, forms: &'static [(u32, Check)]) -> Control {
    Control {
        name,
        forms,
        instead_of: "",
    }
}

/// The newest version that changed something.
const NEWEST: u32 = 37;

const BASELINE: &[Control] = &[
    control("appArmorProfile", &[(0, baseline::app_armor)]),
    control("capabilities_baseline", &[(0, baseline::capabilities)]),
    control("hostNamespaces", &[(0, baseline::host_namespaces)]),
    control("hostPathVolumes", &[(0, baseline::host_paths)]),
    control("hostPorts", &[(0, baseline::host_ports)]),
    control("hostProbesAndHostLifecycle", &[(34, baseline::hosts)]),
    control("privileged", &[(0, baseline::privileged)]),
    control(
        "procMount",
        &[
            (0, baseline::proc_mount),
            (35, baseline::proc_mount_of_host_users),
        ],
    ),
    control(
        "seLinuxOptions",
        &[(0, baseline::selinux_0), (31, baseline::selinux_31)],
    ),
    control(
        "seccompProfile_baseline",
        &[(0, baseline::seccomp_annotations), (19, baseline::seccomp)],
    ),
    control(
        "sysctls",
        &[
            (0, baseline::sysctls_0),
            (27, baseline::sysctls_27),
            (29, baseline::sysctls_29),
            (32, baseline::sysctls_32),
            (37, baseline::sysctls_37),
        ],
    ),
    control("windowsHostProcess", &[(0, baseline::host_process)]),
];

const RESTRICTED: &[Control] = &[
    control(
        "allowPrivilegeEscalation",
        &[
            (8, restricted::escalation),
            (25, restricted::escalation_on_linux),
        ],
    ),
    Control {
        name: "capabilities_restricted",
        forms: &[
            (22, restricted::capabilities),
            (25, restricted::capabilities_on_linux),
        ],
        instead_of: "capabilities_baseline",
    },
    Control {
        name: "procMount_restricted",
        forms: &[(35, baseline::proc_mount)],
        instead_of: "procMount",
    },
    Control {
        name: "restrictedVolumes",
        forms: &[(0, restricted::volumes)],
        instead_of: "hostPathVolumes",
    },
    control(
        "runAsNonRoot",
        &[
            (0, restricted::non_root),
            (35, restricted::non_root_of_host_users),
        ],
    ),
    control(
        "runAsUser",
        &[(23, restricted::user), (35, restricted::user_of_host_users)],
    ),
    Control {
        name: "seccompProfile_restricted",
        forms: &[
            (19, restricted::seccomp),
            (25, restricted::seccomp_on_linux),
        ],
        instead_of: "seccompProfile_baseline",
    },
];

impl Control {
    /// Its form in a version of the standard, if it has one there.
    fn at(&self, minor: u32) -> Option<Check> {
        let forms = self.forms.iter().rev();
        let mut known = forms.filter(|(since, _)| *since <= minor);
        known.next().map(|(_, check)| *check)
    }
}

/// Every control of the standard that the pod does not meet.
pub fn violations(standard: Standard, pod: &Pod<'_>) -> Vec<Violation> {
    let minor = match standard.version {
        Version::Minor(minor) => minor.min(NEWEST),
        Version::Latest => NEWEST,
    };
    let stricter: &[Control] = match standard.level {
        Level::Privileged => return Vec::new(),
        Level::Baseline => &[],
        Level::Restricted => RESTRICTED,
    };
    let replaced = |control: &&Control| {
        let mut stricter = stricter.iter();
        stricter.any(|other| other.instead_of == control.name && other.at(minor).is_some())
    };
    BASELINE
        .iter()
        .filter(|control| !replaced(control))
        .chain(stricter)
        .filter_map(|control| control.at(minor)?(pod))
        .collect()
}

/// `privileged (container "c" must not set ...), hostPort (...)`.
pub fn details(violations: &[Violation]) -> String {
    let each = violations.iter().map(|violation| {
        let Violation { reason, detail } = violation;
        match detail.as_str() {
            "" => reason.clone(),
            detail => format!("{reason} ({detail})"),
        }
    });
    each.collect::<Vec<_>>().join(", ")
}

/// `privileged, hostPort`.
pub fn reasons(violations: &[Violation]) -> String {
    let each = violations.iter().map(|violation| violation.reason.as_str());
    each.collect::<Vec<_>>().join(", ")
}
