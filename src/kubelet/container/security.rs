//! Security contexts: who the process is and what it may do. Pure.

use std::{collections::HashSet, str::FromStr};

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use oci_spec::runtime::{Capability, LinuxCapabilities, User, get_default_maskedpaths};

use super::Refused;
use crate::runtime::image::Image;

/// What a container gets that asks for nothing.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];
/// Every capability up to Linux 6.18; the runtime leaves out what the kernel does not know.
const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];
/// User and group ids above are refused, as everywhere in Kubernetes.
const ID_MAX: i64 = i32::MAX as i64;

/// Who the process is.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    pub oci: User,
    /// As in [`crate::runtime::ContainerConfig::user`].
    pub lookup: Option<String>,
    pub must_not_be_root: bool,
}

fn of_container(container: &Container) -> Option<&SecurityContext> {
    container.security_context.as_ref()
}

fn of_pod(pod: &Pod) -> Option<&PodSecurityContext> {
    pod.spec.as_ref()?.security_context.as_ref()
}

/// The container's own setting, else the pod's.
pub fn effective_user(pod: &Pod, container: &Container) -> Option<i64> {
    of_container(container)
        .and_then(|context| context.run_as_user)
        .or_else(|| of_pod(pod)?.run_as_user)
}

pub fn identity(pod: &Pod, container: &Container, image: &Image) -> Result<Identity, Refused> {
    let (own, shared) = (of_container(container), of_pod(pod));
    let user = effective_user(pod, container).map(id).transpose()?;
    let group = own
        .and_then(|context| context.run_as_group)
        .or_else(|| shared?.run_as_group)
        .map(id)
        .transpose()?;
    let must_not_be_root = own
        .and_then(|context| context.run_as_non_root)
        .or_else(|| shared?.run_as_non_root)
        .unwrap_or(false);
    let of_image = image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.user().clone());
    let of_image = of_image.unwrap_or_default();
    let (image_user, image_group) = match of_image.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (of_image.as_str(), None),
    };
    if must_not_be_root {
        not_root(pod, container, user, image_user)?;
    }

    let name = match (user, image_user) {
        (Some(user), _) => user.to_string(),
        (None, "") => "0".into(),
        (None, name) => name.into(),
    };
    // The image's group goes with the image's user only.
    let group_name = match (group, user) {
        (Some(group), _) => Some(group.to_string()),
        (None, None) => image_group.map(str::to_owned),
        (None, Some(_)) => None,
    };
    let mut groups = Vec::new();
    let supplemental = shared.and_then(|context| context.supplemental_groups.as_ref());
    for group in supplemental
        .into_iter()
        .flatten()
        .copied()
        .chain(shared.and_then(|context| context.fs_group))
    {
        let group = id(group)?;
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let mut oci = User::default();
    oci.set_uid(name.parse().unwrap_or(0))
        .set_gid(
            group_name
                .as_deref()
                .and_then(|group| group.parse().ok())
                .unwrap_or(0),
        )
        .set_additional_gids(Some(groups));

    let strict =
        shared.and_then(|context| context.supplemental_groups_policy.as_deref()) == Some("Strict");
    let number = |text: &str| text.parse::<u32>().is_ok();
    let numeric = number(&name) && group_name.as_deref().is_some_and(number);
    let lookup = match (strict, numeric) {
        // Nothing is looked up, hence no group comes from the image.
        (true, true) => None,
        (true, false) => {
            return Err(Refused::create(
                "supplementalGroupsPolicy Strict is supported only with numeric runAsUser and runAsGroup",
            ));
        }
        (false, _) => Some(match group_name {
            Some(group) => format!("{name}:{group}"),
            None => name,
        }),
    };
    Ok(Identity {
        oci,
        lookup,
        must_not_be_root,
    })
}

fn id(id: i64) -> Result<u32, Refused> {
    match (0..=ID_MAX).contains(&id) {
        true => u32::try_from(id).map_err(|_| Refused::create(format!("id {id} is out of range"))),
        false => Err(Refused::create(format!(
            "id {id} is not between 0 and {ID_MAX}"
        ))),
    }
}

fn not_root(
    pod: &Pod,
    container: &Container,
    user: Option<u32>,
    image_user: &str,
) -> Result<(), Refused> {
    let meta = &pod.metadata;
    let shown = format!(
        "(pod: \"{}_{}({})\", container: {})",
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
        container.name
    );
    let why = match (user, image_user.parse::<u32>()) {
        (Some(0), _) => "container's runAsUser breaks non-root policy".into(),
        (Some(_), _) => return Ok(()),
        (None, Ok(0)) => "container has runAsNonRoot and image will run as root".into(),
        (None, Ok(_)) => return Ok(()),
        (None, Err(_)) if image_user.is_empty() => {
            "container has runAsNonRoot and image will run as root".into()
        }
        (None, Err(_)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root"
        ),
    };
    Err(Refused::config(format!("{why} {shown}")))
}

pub fn privileged(container: &Container) -> bool {
    of_container(container).and_then(|context| context.privileged) == Some(true)
}

/// Only if the pod forbids it: setuid programs are upstream's default.
pub fn no_new_privileges(container: &Container) -> bool {
    of_container(container).and_then(|context| context.allow_privilege_escalation) == Some(false)
}

pub fn read_only_root(container: &Container) -> bool {
    of_container(container).and_then(|context| context.read_only_root_filesystem) == Some(true)
}

/// The API allows it only in user namespaces.
pub fn unmasked_proc(container: &Container) -> bool {
    of_container(container).and_then(|context| context.proc_mount.as_deref()) == Some("Unmasked")
}

/// `ALL` first, then what is added by name, then what is dropped by name. Never inheritable or
/// ambient: a program of another user gets none.
pub fn capabilities(container: &Container) -> Result<LinuxCapabilities, Refused> {
    let wanted = of_container(container).and_then(|context| context.capabilities.clone());
    let wanted = wanted.unwrap_or_default();
    let (add, drop) = (
        wanted.add.unwrap_or_default(),
        wanted.drop.unwrap_or_default(),
    );
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let everything = || {
        ALL.iter()
            .map(|name| capability(name))
            .collect::<Result<HashSet<_>, _>>()
    };
    let mut set: HashSet<Capability> = DEFAULT.into();
    if privileged(container) {
        set = everything()?;
    } else {
        if add.iter().any(is_all) {
            set = everything()?;
        }
        if drop.iter().any(is_all) {
            set.clear();
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            set.insert(capability(name)?);
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            set.remove(&capability(name)?);
        }
    }
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(Some(HashSet::new()))
        .set_ambient(Some(HashSet::new()));
    Ok(capabilities)
}

fn capability(name: &str) -> Result<Capability, Refused> {
    let upper = name.to_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(short).map_err(|_| Refused::create(format!("unknown capability {name:?}")))
}

/// Places in /proc and /sys that tell of the host or reach it.
pub fn masked_paths(cpu_milli: u64) -> Vec<String> {
    let mut paths = get_default_maskedpaths();
    paths.push("/proc/interrupts".into());
    paths.push("/sys/devices/virtual/powercap".into());
    for cpu in 0..cpu_milli.div_ceil(1000) {
        paths.push(format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
    }
    paths
}
