//! The filesystems that every container sees, and where volumes go among them. Pure.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use oci_spec::runtime::Mount;

/// Default mounts and the pod's own, parents before children. What the pod mounts replaces a
/// default of the same place; a volume on `/dev` hides all below it.
pub fn all(pod: &Pod, privileged: bool, own: Vec<Mount>) -> Vec<Mount> {
    let covered = |path: &Path| {
        own.iter().any(|mount| {
            let destination = normal(mount.destination());
            destination == path || (destination == Path::new("/dev") && path.starts_with("/dev"))
        })
    };
    let mut mounts = defaults(pod, privileged);
    mounts.retain(|mount| !covered(mount.destination()));
    mounts.extend(own);
    // Stable: two at the same depth stay in the order given.
    mounts.sort_by_key(|mount| normal(mount.destination()).components().count());
    mounts
}

fn normal(path: &Path) -> std::path::PathBuf {
    path.components().collect()
}

fn defaults(pod: &Pod, privileged: bool) -> Vec<Mount> {
    const CLOSED: [&str; 3] = ["nosuid", "noexec", "nodev"];
    let read = if privileged { "rw" } else { "ro" };
    let host_ipc = pod.spec.as_ref().and_then(|spec| spec.host_ipc) == Some(true);
    let closed = |more: &[&'static str]| [&CLOSED[..], more].concat();
    vec![
        mount("/proc", "proc", "proc", &CLOSED),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        match host_ipc {
            true => mount("/dev/shm", "bind", "/dev/shm", &closed(&["rbind", "rw"])),
            false => mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &closed(&["mode=1777", "size=65536k"]),
            ),
        },
        mount("/dev/mqueue", "mqueue", "mqueue", &CLOSED),
        mount("/sys", "sysfs", "sysfs", &closed(&[read])),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &closed(&["relatime", read]),
        ),
    ]
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.into()))
        .set_source(Some(source.into()))
        .set_options(Some(
            options.iter().map(|option| (*option).into()).collect(),
        ));
    mount
}

/// The root must let through what any of its mounts lets through.
pub fn propagation(own: &[Mount]) -> &'static str {
    let any = |wanted: &str| {
        let mut options = own
            .iter()
            .filter_map(|mount| mount.options().as_ref())
            .flatten();
        options.any(|option| option == wanted)
    };
    match (any("rshared"), any("rslave")) {
        (true, _) => "rshared",
        (false, true) => "rslave",
        (false, false) => "rprivate",
    }
}
