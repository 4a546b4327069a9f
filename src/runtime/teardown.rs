//! Removing what a pod or container left on the host. Blocking; every step may have been done
//! before, and a step that fails does not keep the later ones from being tried.

use std::{io, path::Path};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{
    Config, Error, cgroup,
    records::{self, PodDir, PodRecord},
};
use crate::{
    format::{self, Unreadable},
    supervision::steps::{Step, reached},
};

/// First error of several steps.
#[derive(Default)]
struct First(Option<Error>);

impl First {
    fn note(&mut self, result: Result<(), Error>) {
        if let Err(error) = result
            && self.0.is_none()
        {
            self.0 = Some(error);
        }
    }

    fn result(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}

pub fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    |source| Error::Io { action, source }
}

/// Kills what runs in a group and removes it.
pub fn remove_group(hierarchy: &cgroups::Hierarchy, name: &str) -> Result<(), Error> {
    cgroups::Group::open(hierarchy, name)
        .and_then(|group| {
            group.kill_all()?;
            group.remove()
        })
        .map_err(|source| cgroup::failed(name, source))
}

/// Everything of one container but its log.
pub fn remove_container(
    config: &Config,
    hierarchy: &cgroups::Hierarchy,
    pod_group: &str,
    dir: &PodDir,
    id: &str,
) -> Result<(), Error> {
    let mut first = First::default();
    let group = cgroup::child_name(&config.cgroup_root, pod_group, id);
    first.note(remove_group(hierarchy, &group));
    for path in [records::root_dir(&config.state_dir, id), dir.container(id)] {
        first.note(remove(&path));
    }
    first.result()
}

fn remove(path: &Path) -> Result<(), Error> {
    records::remove_dir(path).map_err(io_error(format!("remove {}", path.display())))
}

/// Everything of one pod, whether its supervisor lives or not.
pub fn remove_pod(
    config: &Config,
    hierarchy: &cgroups::Hierarchy,
    dir: &PodDir,
) -> Result<(), Error> {
    let mut first = First::default();
    // Without a record nothing else was made yet: the record comes first.
    if let Some(record) = record(dir)? {
        let (root, pod) = (&config.cgroup_root, &record.config.cgroup);
        // Without its supervisor nothing of the pod is started again.
        for group in [
            cgroup::supervisor_name(root, pod),
            cgroup::pod_name(root, pod),
        ] {
            first.note(remove_group(hierarchy, &group));
        }
    }
    reached(Step::PodGroupsRemoved);
    if first.0.is_none() {
        // The record goes last: as long as something is left it can be found again.
        first.note(remove_files(config, dir));
    }
    first.result()
}

/// What lies on disk of one pod of which nothing runs.
pub fn remove_files(config: &Config, dir: &PodDir) -> Result<(), Error> {
    let mut first = First::default();
    first.note(unmount(&dir.shm()));
    let ids = dir.container_ids();
    for id in ids.map_err(io_error(format!("read {}", dir.containers().display())))? {
        first.note(remove(&records::root_dir(&config.state_dir, &id)));
    }
    if first.0.is_none() {
        first.note(remove(&dir.0));
    }
    first.result()
}

/// The pod's record, also one that was set aside. One that cannot be read is an error: what it names
/// would stay behind, and nobody would find it any more.
fn record(dir: &PodDir) -> Result<Option<PodRecord>, Error> {
    for path in [dir.pod(), format::aside(&dir.pod())] {
        match format::patiently(|| records::read(&path)) {
            Ok(record) => return Ok(Some(record)),
            Err(Unreadable::Absent) => {}
            Err(error) => {
                let action = io_error(format!("read {}", path.display()));
                return Err(action(io::Error::other(error)));
            }
        }
    }
    Ok(None)
}

fn unmount(point: &Path) -> Result<(), Error> {
    match umount2(point, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(io_error(format!("unmount {}", point.display()))(
            errno.into(),
        )),
    }
}

/// Everything of all pods that `config`'s folders know of, without a daemon.
pub fn remove_all(config: &Config) -> Result<(), Error> {
    let hierarchy =
        cgroups::Hierarchy::detect().map_err(|source| cgroup::failed("this host", source))?;
    let mut first = First::default();
    let uids = records::names(&records::pods(config));
    for uid in uids.map_err(io_error("list the pods"))? {
        first.note(remove_pod(config, &hierarchy, &PodDir::new(config, &uid)));
    }
    first.note(remove_group(&hierarchy, &config.cgroup_root));
    first.note(remove(&records::pods(config)));
    first.note(remove(&config.state_dir.join("containers")));
    first.result()
}
