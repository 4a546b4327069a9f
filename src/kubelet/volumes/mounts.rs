//! What a container gets mounted: its volumes, and the files that the node manages for it.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use nix::fcntl::OFlag;
use oci_spec::runtime::Mount;

use super::{
    Config, Error, atomic,
    collect::folder_name,
    hosts, io as failed, make, mountinfo,
    resolv::{self, Resolv},
    subpath,
};
use crate::{
    kubelet::container::{self, Environment, Unresolved},
    runtime::files,
};

const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Files of variables are small; more is a mistake.
const FILE_MAX: u64 = 1 << 20;
/// The node's own hosts and resolv.conf.
const HOST_FILE_MAX: u64 = 1 << 20;

/// All that decides one container's mounts.
pub struct Wanted {
    pub config: Arc<Config>,
    /// The pod's.
    pub folder: PathBuf,
    pub pod: Pod,
    pub pod_ips: Vec<IpAddr>,
    pub container: Container,
    pub attempt: u32,
    pub environment: Environment,
}

/// What a container is made with.
pub struct Prepared {
    pub mounts: Vec<Mount>,
    /// What of the pod's resolver was left out, if it was written just now.
    pub resolver_limits: Vec<String>,
}

impl Wanted {
    /// Makes what must exist (subpath binds, managed files) and lists the mounts. Blocks.
    pub fn prepare(&self) -> Result<Prepared, Error> {
        let given = self.container.volume_mounts.as_deref().unwrap_or_default();
        let volumes = given.iter().enumerate();
        let mut mounts = volumes
            .map(|(index, mount)| self.volume(index, mount))
            .collect::<Result<Vec<_>, _>>()?;
        let resolver_limits = self.managed(&mut mounts)?;
        Ok(Prepared {
            mounts,
            resolver_limits,
        })
    }

    fn volume(&self, index: usize, mount: &VolumeMount) -> Result<Mount, Error> {
        let wrong =
            |what: String| Error::Container(format!("volume mount {:?}: {what}", mount.name));
        let listed = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.volumes.as_ref());
        let volume = listed
            .into_iter()
            .flatten()
            .find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| wrong("the pod has no such volume".into()))?;
        let root = place_of(&self.folder, volume)
            .ok_or_else(|| wrong("its kind of volume is not supported by this version".into()))?;
        let source = match self.sub_path(mount).map_err(&wrong)? {
            None => root,
            Some(path) => {
                subpath::check(&path).map_err(&wrong)?;
                let target = self.folder.join("volume-subpaths").join(&volume.name);
                let target = target.join(&self.container.name).join(index.to_string());
                subpath::bind(&root, &path, &target).map_err(|error| {
                    wrong(format!("failed to prepare subPath {path:?}: {error}"))
                })?;
                target
            }
        };
        let propagation = propagation(mount, &self.container, &source).map_err(&wrong)?;
        // What the node keeps up to date is not the container's to change.
        let is_api_data = volume.empty_dir.is_none() && volume.host_path.is_none();
        let access = access(mount, is_api_data);
        Ok(bind(
            &absolute(&mount.mount_path),
            &source,
            &[propagation, access],
        ))
    }

    fn sub_path(&self, mount: &VolumeMount) -> Result<Option<String>, String> {
        let given = |path: &Option<String>| path.clone().filter(|path| !path.is_empty());
        let Some(expression) = given(&mount.sub_path_expr) else {
            return Ok(given(&mount.sub_path));
        };
        let value = |name: &str| {
            let mut variables = self.environment.variables.iter();
            variables
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        match container::expand_strict(&expression, value) {
            Ok(path) => Ok(Some(path)),
            Err(Unresolved(name)) => Err(format!(
                "cannot expand subPathExpr {expression:?}: the container has no variable {name}"
            )),
        }
    }

    /// The files that every container has, unless it mounts something there itself; what had to be
    /// left out of the resolver's.
    fn managed(&self, mounts: &mut Vec<Mount>) -> Result<Vec<String>, Error> {
        let mut resolver_limits = Vec::new();
        let spec = self.pod.spec.as_ref();
        let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
        let context = self.container.security_context.as_ref();
        let read_only = context.and_then(|context| context.read_only_root_filesystem) == Some(true);
        let access = if read_only { "ro" } else { "rw" };
        let free = |mounts: &[Mount], path: &str| {
            !mounts
                .iter()
                .any(|one| one.destination() == Path::new(path))
        };
        if free(mounts, HOSTS) && (host_network || !self.pod_ips.is_empty()) {
            let host = match host_network {
                true => Some(host_text(Path::new(HOSTS)).unwrap_or_default()),
                false => None,
            };
            let domain = &self.config.cluster_domain;
            let text = hosts::content(&self.pod, &self.pod_ips, host.as_deref(), domain);
            let file = self.folder.join("etc-hosts");
            keep(&file, &text)?;
            mounts.push(bind(Path::new(HOSTS), &file, &["rprivate", access]));
        }
        if free(mounts, HOSTNAME) {
            let name = match host_network {
                true => nix::unistd::gethostname()
                    .map_err(|error| failed("read", Path::new("the host's name"))(error.into()))?
                    .to_string_lossy()
                    .into_owned(),
                false => container::hostname(&self.pod),
            };
            let file = self.folder.join("hostname");
            keep(&file, &format!("{name}\n"))?;
            mounts.push(bind(Path::new(HOSTNAME), &file, &["rprivate", access]));
        }
        if free(mounts, RESOLV_CONF) {
            let file = self.folder.join("resolv.conf");
            let (text, left_out) = self.resolv_conf();
            if keep(&file, &text)? == Kept::Written {
                resolver_limits = left_out;
            }
            mounts.push(bind(Path::new(RESOLV_CONF), &file, &["rprivate", access]));
        }
        let path = self.container.termination_message_path.clone();
        let path = path
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| TERMINATION_LOG.into());
        let log = termination_log(&self.folder, &self.container.name, self.attempt);
        if let Some(parent) = log.parent() {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o750);
            builder.create(parent).map_err(failed("create", parent))?;
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o666);
        options.open(&log).map_err(failed("create", &log))?;
        atomic::set_mode(&log, 0o666).map_err(Error::Container)?;
        mounts.push(bind(&absolute(&path), &log, &["rprivate", "rw"]));
        Ok(resolver_limits)
    }

    fn resolv_conf(&self) -> (String, Vec<String>) {
        let host = host_text(&self.config.resolv_conf).unwrap_or_else(|error| {
            tracing::debug!(file = %self.config.resolv_conf.display(), %error, "no resolv.conf");
            String::new()
        });
        let cluster = resolv::Cluster {
            servers: &self.config.cluster_dns,
            domain: &self.config.cluster_domain,
        };
        let (resolv, left_out) = resolv::for_pod(&self.pod, Resolv::parse(&host), cluster);
        (resolv.text(), left_out)
    }
}

/// Where the volume lies on the node.
fn place_of(folder: &Path, volume: &Volume) -> Option<PathBuf> {
    match &volume.host_path {
        Some(host) => Some(PathBuf::from(&host.path)),
        None => Some(make::place(folder, folder_name(volume)?, &volume.name)),
    }
}

fn absolute(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

fn bind(destination: &Path, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    let options = ["rbind"]
        .iter()
        .chain(options)
        .map(|option| (*option).to_owned());
    mount
        .set_destination(destination.into())
        .set_typ(Some("bind".into()))
        .set_source(Some(source.into()))
        .set_options(Some(options.collect()));
    mount
}

/// Plain read-only leaves what is mounted inside the volume writable.
fn access(mount: &VolumeMount, is_api_data: bool) -> &'static str {
    let read_only = mount.read_only == Some(true);
    match mount.recursive_read_only.as_deref() {
        Some("Enabled" | "IfPossible") if read_only => "rro",
        _ if read_only || is_api_data => "ro",
        _ => "rw",
    }
}

/// How later mounts go between the node and the container.
fn propagation(
    mount: &VolumeMount,
    container: &Container,
    source: &Path,
) -> Result<&'static str, String> {
    let wanted = mount.mount_propagation.as_deref().unwrap_or("None");
    if wanted == "None" {
        return Ok("rprivate");
    }
    let below = mountinfo::containing(source).map_err(|error| error.to_string())?;
    let (shared, slave) = below
        .as_ref()
        .map_or((false, false), |one| (one.shared, one.slave));
    let point = below.map(|one| one.point).unwrap_or_default();
    let not = |what: &str| {
        Err(format!(
            "path {:?} is mounted on {:?} but it is not a {what} mount",
            source.display(),
            point.display()
        ))
    };
    let context = container.security_context.as_ref();
    let privileged = context.and_then(|context| context.privileged) == Some(true);
    match wanted {
        "HostToContainer" if shared || slave => Ok("rslave"),
        "HostToContainer" => not("shared or slave"),
        "Bidirectional" if !privileged => {
            Err("Bidirectional mount propagation is available only to privileged containers".into())
        }
        "Bidirectional" if shared => Ok("rshared"),
        "Bidirectional" => not("shared"),
        other => Err(format!("unknown mount propagation {other:?}")),
    }
}

/// A file of the node's administrator.
fn host_text(path: &Path) -> io::Result<String> {
    let bytes = files::read_file_at_most(&files::open_following(path)?, HOST_FILE_MAX)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    AsItWas,
    Written,
}

/// The file's place is bound in containers that run, so it is written over, not replaced.
fn keep(file: &Path, text: &str) -> Result<Kept, Error> {
    // Containers may have made it large.
    let there = files::read_at_most(file, text.len() as u64);
    if there.is_ok_and(|there| there == text.as_bytes()) {
        return Ok(Kept::AsItWas);
    }
    fs::write(file, text).map_err(failed("write", file))?;
    atomic::set_mode(file, 0o644).map_err(Error::Container)?;
    Ok(Kept::Written)
}

/// The file behind one attempt's termination message.
pub fn termination_log(folder: &Path, container: &str, attempt: u32) -> PathBuf {
    folder
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

/// A file of variables: the volume's place, the path in it, and the names to hand it back under.
pub struct WantedFile {
    root: PathBuf,
    key: (String, String),
}

/// Content by volume and path; `None` if there is no such file.
pub type Files = BTreeMap<(String, String), Option<Vec<u8>>>;

/// Files that the container's `fileKeyRef` variables come from.
pub fn referenced_files(pod: &Pod, container: &Container, folder: &Path) -> Vec<WantedFile> {
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_deref())
        .unwrap_or_default();
    let sources = container
        .env
        .iter()
        .flatten()
        .filter_map(|one| one.value_from.as_ref());
    let files = sources
        .filter_map(|source| source.file_key_ref.as_ref())
        .filter_map(|file| {
            let volume = volumes
                .iter()
                .find(|volume| volume.name == file.volume_name)?;
            volume.empty_dir.as_ref()?;
            Some(WantedFile {
                root: place_of(folder, volume)?,
                key: (file.volume_name.clone(), file.path.clone()),
            })
        });
    files.collect()
}

/// Their content; what cannot be read as a file of the volume (a device that a container made there,
/// say, or one that is too large) counts as missing. Blocks.
pub fn read_files(wanted: Vec<WantedFile>) -> Result<Files, Error> {
    let read = |file: &WantedFile| -> io::Result<Vec<u8>> {
        let place = subpath::open(&file.root, Path::new(&file.key.1), OFlag::O_PATH)?;
        files::read_file_at_most(&files::open_place(&place)?, FILE_MAX)
    };
    let files = wanted.into_iter().map(|file| {
        let content = read(&file).ok();
        (file.key, content)
    });
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_files_are_not_read_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hosts");
        for (bytes, good) in [(HOST_FILE_MAX, true), (HOST_FILE_MAX + 1, false)] {
            fs::File::create(&file).unwrap().set_len(bytes).unwrap();
            assert_eq!(host_text(&file).is_ok(), good, "{bytes}");
        }
    }
}
