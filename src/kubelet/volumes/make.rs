//! Puts a pod's volumes on disk.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

use super::{
    Error, atomic,
    collect::{Collected, Place, Source},
    empty_dir, io,
};

/// API data is at most 1 MiB an object; a projected volume may hold several.
const API_DATA_MAX: u64 = 32 << 20;

/// Who besides root may use what is made.
#[derive(Clone, Copy, Debug)]
pub struct Owners {
    /// `fsGroup`.
    group: Option<u32>,
}

impl Owners {
    pub fn of(pod: &Pod) -> Self {
        let context = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.security_context.as_ref());
        let group = context.and_then(|context| context.fs_group);
        Self {
            group: group.and_then(|group| u32::try_from(group).ok()),
        }
    }
}

/// Where a volume of that kind lies below the pod's folder.
pub fn place(folder: &Path, kind: &str, name: &str) -> PathBuf {
    folder.join("volumes").join(kind).join(name)
}

/// Makes each by itself; the errors of those that could not be made.
pub fn make(folder: &Path, volumes: Vec<Collected>, owners: Owners) -> Result<Vec<Error>, Error> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o750);
    builder.create(folder).map_err(io("create", folder))?;
    let mut failed = Vec::new();
    for Collected { name, kind, source } in volumes {
        let made = source.and_then(|source| make_one(folder, &name, kind, &source, owners));
        if let Err(message) = made {
            let volume = name;
            failed.push(Error::Volume { volume, message });
        }
    }
    Ok(failed)
}

fn make_one(
    folder: &Path,
    name: &str,
    kind: Option<&str>,
    source: &Source,
    owners: Owners,
) -> Result<(), String> {
    let place = place(folder, kind.unwrap_or_default(), name);
    if let Source::HostPath(path) = source {
        return path.check();
    }
    if let Some(parent) = place.parent() {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o750).create(parent);
        made.map_err(|error| format!("create {}: {error}", parent.display()))?;
    }
    match source {
        Source::HostPath(_) => Ok(()),
        Source::EmptyDir(wanted) => wanted.make(&place, owners.group),
        Source::Files { payload, place: on } => {
            let mut fresh = atomic::make_folder(&place, 0o777)?;
            if *on == Place::Memory {
                fresh |= empty_dir::mount_tmpfs(&place, API_DATA_MAX)?;
            }
            if fresh {
                atomic::set_mode(&place, 0o777)?;
                atomic::own_folder(&place, owners.group)?;
            }
            atomic::write(&place, payload, owners.group)
        }
    }
}
