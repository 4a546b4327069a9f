//! Which controllers the groups below a v2 group have.
//!
//! A group below which controllers are on holds no process itself. The host's root is exempt; the
//! root that a container sees is not, and the container's processes start in it.
//! Source: kernel, Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint".

use std::{fs, io, path::Path};

use crate::{
    Error,
    group::{failed, read, write},
};

/// Controllers without which limits and statistics would be false. Memory is first: it is refused
/// where processes are, while turning on the others there would make the group a threaded one.
const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
/// Where the processes of a container's root go: docker-in-docker, kind and k3s use the same name.
const INIT: &str = "init";
/// Processes that are born while others are moved need another round.
const ROUNDS: usize = 10;

/// Lets children of `dir` have every controller that `dir` has; some may refuse, not the needed.
pub(crate) fn enable(dir: &Path) -> Result<(), Error> {
    let offered = read(&dir.join("cgroup.controllers"))?;
    let control = dir.join("cgroup.subtree_control");
    let enabled = read(&control)?;
    let has = |list: &str, name: &str| list.split_whitespace().any(|other| other == name);
    if let Some(missing) = NEEDED.iter().find(|name| !has(&offered, name)) {
        return Err(Error::NoController((*missing).into()));
    }
    let others = offered
        .split_whitespace()
        .filter(|name| !NEEDED.contains(name));
    for name in NEEDED.into_iter().chain(others) {
        if has(&enabled, name) {
            continue;
        }
        match write(&control, &format!("+{name}")) {
            Err(error) if NEEDED.contains(&name) => return Err(error),
            Err(error) => tracing::debug!(%error, controller = name, "not enabled"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The same for the root that we see: inside a container its processes are moved out of the way.
pub(crate) fn enable_at_root(root: &Path) -> Result<(), Error> {
    for _ in 0..ROUNDS {
        match enable(root) {
            Err(Error::Write { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                vacate(root)?;
            }
            other => return other,
        }
    }
    enable(root)
}

fn vacate(root: &Path) -> Result<(), Error> {
    let init = root.join(INIT);
    match fs::create_dir(&init) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("create", &init, error));
        }
        _ => {}
    }
    for pid in read(&root.join("cgroup.procs"))?.lines() {
        match write(&init.join("cgroup.procs"), pid) {
            // It has ended meanwhile.
            Err(Error::Write { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    tracing::info!(group = %init.display(), "moved the processes of the root group");
    Ok(())
}
