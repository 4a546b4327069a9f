//! The pod's group (`fsGroup`) on volumes that are folders of the node.
//!
//! Given once for each pod, to a volume that no other pod here has: that one may work in it with another
//! group. Who has a volume is seen on disk, by a folder of the volume's name below the pod's, so that a
//! restart forgets nothing. A link below that says where the volume lies, for whoever measures it.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

use super::{Error, PodVolumes, blocking, claims::Folder, io, make};
use crate::runtime::files::{self, Given};

/// As upstream names it below a pod's folder.
pub const KIND: &str = "kubernetes.io~local-volume";

/// The group, and when it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    group: u32,
    when: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Not if the volume's root is the group's: the rest is taken to be, too.
    OnRootMismatch,
}

impl Wanted {
    fn of(pod: &Pod) -> Option<Self> {
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        Some(Self {
            group: u32::try_from(context.fs_group?).ok()?,
            when: match context.fs_group_change_policy.as_deref() {
                Some("OnRootMismatch") => When::OnRootMismatch,
                _ => When::Always,
            },
        })
    }
}

impl PodVolumes {
    /// What is to be said of volumes that are another group's and stay so.
    pub(super) async fn give_to_group(
        &self,
        pod: &Pod,
        folders: Vec<Folder>,
    ) -> Result<Vec<String>, Error> {
        if folders.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = Wanted::of(pod);
        let own = self.folder()?.to_owned();
        let life = self.life.clone();
        let held = life.files.clone().write_owned().await;
        blocking(move || {
            let mut said = Vec::new();
            for folder in &folders {
                if life.user.is_released() {
                    return Err(Error::Released);
                }
                let stop = || life.user.is_released();
                said.extend(give(&own, folder, wanted, &stop)?);
            }
            drop(held); // also where nobody waits any more
            Ok(said)
        })
        .await
    }
}

/// `own`: the pod's folder.
fn give(
    own: &Path,
    folder: &Folder,
    wanted: Option<Wanted>,
    stop: &dyn Fn() -> bool,
) -> Result<Option<String>, Error> {
    let mark = make::place(own, KIND, &folder.persistent_volume);
    if mark.exists() {
        link(&mark, folder)?;
        return Ok(None);
    }
    let mut said = None;
    if let Some(wanted) = wanted {
        if is_used_by_others(own, &folder.persistent_volume) {
            let found = fs::metadata(&folder.path).map_err(io("read", &folder.path))?;
            said = (found.gid() != wanted.group).then(|| {
                format!(
                    "The requested fsGroup is {}, but the volume {} has GID {}. The volume may not be \
                     shareable.",
                    wanted.group,
                    folder.persistent_volume,
                    found.gid()
                )
            });
        } else if !folder.read_only {
            apply(folder, wanted, stop)?;
        }
    }
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o750).create(&mark);
    made.map_err(io("create", &mark))?;
    link(&mark, folder)?;
    Ok(said)
}

/// Says below the mark which of the pod's volumes it is, and where it lies.
fn link(mark: &Path, folder: &Folder) -> Result<(), Error> {
    let link = mark.join(&folder.volume);
    match std::os::unix::fs::symlink(&folder.path, &link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(io("create", &link)),
    }
}

/// The folders of the node that the pod whose folder is `own` has: name in the pod, and place.
pub fn local_folders(own: &Path) -> Vec<(String, PathBuf)> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let kind = own.join("volumes").join(KIND);
    let links = entries(&kind).flat_map(|mark| entries(&mark.path()));
    links
        .filter_map(|link| {
            let name = link.file_name().into_string().ok()?;
            Some((name, fs::read_link(link.path()).ok()?))
        })
        .collect()
}

fn apply(folder: &Folder, wanted: Wanted, stop: &dyn Fn() -> bool) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Volume {
        volume: folder.volume.clone(),
        message: format!(
            "applyFSGroup failed for vol {}: {}: {error}",
            folder.persistent_volume,
            folder.path.display()
        ),
    };
    if wanted.when == When::OnRootMismatch
        && !files::lacks_group(&folder.path, wanted.group).map_err(failed)?
    {
        return Ok(());
    }
    match files::give_to_group(&folder.path, wanted.group, stop).map_err(failed)? {
        Given::Done(None) => Ok(()),
        // One file that cannot be changed must not keep the pod from its others.
        Given::Done(Some(error)) => {
            let volume = &folder.persistent_volume;
            tracing::warn!(volume, group = wanted.group, %error, "not all files are the group's");
            Ok(())
        }
        Given::Stopped => Err(Error::Released),
    }
}

fn is_used_by_others(own: &Path, persistent_volume: &str) -> bool {
    let all = own.parent().and_then(|pods| fs::read_dir(pods).ok());
    let mut all = all.into_iter().flatten().flatten();
    all.any(|pod| {
        let pod = pod.path();
        pod != own && make::place(&pod, KIND, persistent_volume).exists()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn gid(path: &Path) -> u32 {
        fs::metadata(path).unwrap().gid()
    }

    #[test]
    #[ignore = "needs root"]
    fn once_for_each_pod_and_for_one_pod_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        fs::create_dir(&path).unwrap();
        let folder = |read_only| Folder {
            volume: "v".into(),
            persistent_volume: "pv".into(),
            path: path.clone(),
            read_only,
        };
        let wanted = |group, when| Some(Wanted { group, when });
        let pod = |name: &str| dir.path().join("pods").join(name);
        let give =
            |name: &str, read_only, wanted| give(&pod(name), &folder(read_only), wanted, &|| false);
        let before = gid(&path);
        assert_eq!(give("reads", true, wanted(9, When::Always)).unwrap(), None);
        assert_eq!(gid(&path), before);
        // Another pod has it now.
        let said = give("second", false, wanted(9, When::Always)).unwrap();
        assert!(said.unwrap().starts_with("The requested fsGroup is 9, but"));
        assert_eq!(gid(&path), before);
        for name in ["reads", "second"] {
            fs::remove_dir_all(pod(name)).unwrap();
        }
        assert_eq!(give("a", false, wanted(7, When::Always)).unwrap(), None);
        assert_eq!(gid(&path), 7);
        let said = give("same", false, wanted(7, When::Always)).unwrap();
        assert_eq!(said, None);
        fs::remove_dir_all(pod("same")).unwrap();
        // What its users made of it since stays.
        let file = path.join("file");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        give("a", false, wanted(7, When::Always)).unwrap();
        let mode = || fs::metadata(&file).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        fs::remove_dir_all(pod("a")).unwrap();
        give("b", false, wanted(7, When::OnRootMismatch)).unwrap();
        assert_eq!(mode(), 0o600);
        fs::remove_dir_all(pod("b")).unwrap();
        give("c", false, wanted(8, When::OnRootMismatch)).unwrap();
        assert_eq!((mode(), gid(&file)), (0o660, 8));
        assert_eq!(local_folders(&pod("c")), [("v".to_owned(), path.clone())]);
    }
}
