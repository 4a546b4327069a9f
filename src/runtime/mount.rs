//! Mounts of the OCI spec: what an entry means (pure), and attaching it inside a root.
//!
//! Every mount is made detached and attached to a descriptor that was resolved inside the root, so
//! no link in an image or a volume can move it. Bind sources are cloned before the container's
//! namespace is cut off from the host's, so that they keep the host's propagation where asked for.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use oci_spec::runtime::Mount;

use super::{
    rootfs::{Kind, Root, is_dir, text},
    sys,
};

/// What the option words of one mount say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: Bind,
    pub set: u64,
    pub clear: u64,
    /// As `set`, with all mounts below.
    pub set_below: u64,
    /// 0 when nothing was said.
    pub propagation: u64,
    pub propagation_below: bool,
    /// For the file system itself.
    pub data: Vec<(String, Option<String>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    #[default]
    No,
    /// This mount alone.
    One,
    /// With all mounts below.
    All,
}

/// Reads the option words; unknown ones belong to the file system.
pub fn options(words: &[String]) -> Options {
    let mut found = Options::default();
    for word in words {
        let (bit, on) = match word.as_str() {
            "ro" => (libc::MOUNT_ATTR_RDONLY, true),
            "rw" => (libc::MOUNT_ATTR_RDONLY, false),
            "nosuid" => (libc::MOUNT_ATTR_NOSUID, true),
            "suid" => (libc::MOUNT_ATTR_NOSUID, false),
            "nodev" => (libc::MOUNT_ATTR_NODEV, true),
            "dev" => (libc::MOUNT_ATTR_NODEV, false),
            "noexec" => (libc::MOUNT_ATTR_NOEXEC, true),
            "exec" => (libc::MOUNT_ATTR_NOEXEC, false),
            "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, true),
            "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, true),
            _ => (0, true),
        };
        if bit != 0 {
            if on {
                found.set |= bit;
                found.clear &= !bit;
            } else {
                found.clear |= bit;
                found.set &= !bit;
            }
            continue;
        }
        let atime = |kind| (kind, libc::MOUNT_ATTR__ATIME);
        match word.as_str() {
            "bind" if found.bind == Bind::No => found.bind = Bind::One,
            "bind" | "defaults" | "relatime" => {}
            "rbind" => found.bind = Bind::All,
            "noatime" | "strictatime" => {
                let kind = match word.as_str() {
                    "noatime" => libc::MOUNT_ATTR_NOATIME,
                    _ => libc::MOUNT_ATTR_STRICTATIME,
                };
                let (set, clear) = atime(kind);
                found.set |= set;
                found.clear |= clear;
            }
            "rro" => found.set_below |= libc::MOUNT_ATTR_RDONLY,
            "rnosuid" => found.set_below |= libc::MOUNT_ATTR_NOSUID,
            "rnodev" => found.set_below |= libc::MOUNT_ATTR_NODEV,
            "rnoexec" => found.set_below |= libc::MOUNT_ATTR_NOEXEC,
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
            | "runbindable" => {
                let name = word.strip_prefix('r').unwrap_or(word);
                found.propagation_below = name.len() != word.len();
                found.propagation = match name {
                    "private" => libc::MS_PRIVATE,
                    "slave" => libc::MS_SLAVE,
                    "shared" => libc::MS_SHARED,
                    _ => libc::MS_UNBINDABLE,
                };
            }
            _ => found.data.push(match word.split_once('=') {
                Some((key, value)) => (key.into(), Some(value.into())),
                None => (word.clone(), None),
            }),
        }
    }
    found
}

/// One mount, ready to be attached.
pub struct Prepared {
    pub destination: PathBuf,
    options: Options,
    what: What,
}

enum What {
    /// A clone of something on the host.
    Clone { mount: OwnedFd, kind: Kind },
    /// A file system made when it is attached, in the container's namespaces.
    New { kind: String, source: String },
    /// The container's control groups, v1: controller folders to clones.
    Controllers(BTreeMap<String, Controller>),
}

/// A v1 controller of the container's `/sys/fs/cgroup`.
pub enum Controller {
    Clone(OwnedFd),
    /// Mounted together with others under this name.
    Link(String),
}

/// Facts about the pod that the spec's mounts refer to.
pub struct Sources<'a> {
    /// The pod's shared memory on the host; `None` with the host's ipc namespace.
    pub shm: &'a Path,
    pub hierarchy: &'a cgroups::Hierarchy,
    /// The container's group, relative to every tree.
    pub cgroup: &'a str,
}

/// Clones what comes from the host. Must run before [`cut_off`].
pub fn prepare(mount: &Mount, sources: &Sources<'_>) -> io::Result<Prepared> {
    let destination = mount.destination().clone();
    let mut options = options(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or("none");
    let source = mount.source().clone().unwrap_or_default();
    let shared_memory =
        destination == Path::new("/dev/shm") && kind == "tmpfs" && options.bind == Bind::No;
    let what = if shared_memory {
        options.data.clear();
        options.propagation = libc::MS_PRIVATE;
        clone(sources.shm, Bind::One)?
    } else if options.bind != Bind::No || kind == "bind" {
        if options.bind == Bind::No {
            options.bind = Bind::All;
        }
        if options.propagation == 0 {
            options.propagation = libc::MS_PRIVATE;
            options.propagation_below = true;
        }
        check_propagation(&source, options.propagation)?;
        clone(&source, options.bind)?
    } else if kind == "cgroup" && sources.hierarchy.layout == cgroups::Layout::V1 {
        controllers(sources)?
    } else {
        What::New {
            kind: if kind == "cgroup" { "cgroup2" } else { kind }.into(),
            source: source.to_string_lossy().into_owned(),
        }
    };
    Ok(Prepared {
        destination,
        options,
        what,
    })
}

fn clone(source: &Path, bind: Bind) -> io::Result<What> {
    let below = match bind {
        Bind::All => libc::AT_RECURSIVE as u32,
        Bind::One | Bind::No => 0,
    };
    let mount = sys::open_tree(None, &text(source)?, libc::OPEN_TREE_CLONE | below)
        .map_err(|error| with(&format!("bind source {}", source.display()), error))?;
    let kind = if is_dir(mount.as_fd())? {
        Kind::Dir
    } else {
        Kind::File
    };
    Ok(What::Clone { mount, kind })
}

/// Propagation from or to the host works only where the host's mount takes part in it.
fn check_propagation(source: &Path, propagation: u64) -> io::Result<()> {
    if !matches!(propagation, libc::MS_SHARED | libc::MS_SLAVE) {
        return Ok(());
    }
    let source = std::fs::canonicalize(source)?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let Some((point, tags)) = mount_of(&table, &source) else {
        return Ok(());
    };
    let shared = tags.iter().any(|tag| tag.starts_with("shared:"));
    let slave = tags.iter().any(|tag| tag.starts_with("master:"));
    let source = source.display();
    match propagation {
        libc::MS_SHARED if !shared => Err(io::Error::other(format!(
            "path {source:?} is mounted on {point:?} but it is not a shared mount"
        ))),
        libc::MS_SLAVE if !shared && !slave => Err(io::Error::other(format!(
            "path {source:?} is mounted on {point:?} but it is not a shared or slave mount"
        ))),
        _ => Ok(()),
    }
}

/// Mount point that `path` lies on, with its optional fields. Source: proc_pid_mountinfo(5).
fn mount_of(mountinfo: &str, path: &Path) -> Option<(String, Vec<String>)> {
    let mut best: Option<(String, Vec<String>)> = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(4);
        let Some(point) = fields.next() else { continue };
        let point = point.replace("\\040", " ").replace("\\134", "\\");
        let longer = best
            .as_ref()
            .is_none_or(|(old, _)| point.len() >= old.len());
        if longer && path.starts_with(&point) {
            let tags = fields.skip(1).take_while(|field| *field != "-");
            best = Some((point, tags.map(str::to_owned).collect()));
        }
    }
    best
}

fn controllers(sources: &Sources<'_>) -> io::Result<What> {
    let mut folders: BTreeMap<String, Controller> = BTreeMap::new();
    for (name, point) in &sources.hierarchy.v1 {
        let folder = point
            .file_name()
            .map_or_else(|| name.clone(), |name| name.to_string_lossy().into_owned());
        if !folders.contains_key(&folder) {
            let group = text(&point.join(sources.cgroup))?;
            let clone = sys::open_tree(None, &group, libc::OPEN_TREE_CLONE)?;
            folders.insert(folder.clone(), Controller::Clone(clone));
        }
        if *name != folder {
            folders.insert(name.clone(), Controller::Link(folder));
        }
    }
    Ok(What::Controllers(folders))
}

/// From here on nothing mounted reaches the host; what the host mounts goes on to arrive.
pub fn cut_off() -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )?;
    Ok(())
}

/// Attaches a mount inside the root; a file system that was made for it is given back.
pub fn attach(root: &Root, prepared: &Prepared) -> io::Result<Option<OwnedFd>> {
    let Prepared {
        destination,
        options,
        what,
    } = prepared;
    match what {
        What::Clone { mount, kind } => {
            let target = root.ensure(destination, *kind, default_mode(*kind))?;
            refuse_inside_proc(destination, &target, Some(mount))?;
            set_attributes(mount, options)?;
            sys::move_mount(mount.as_fd(), target.as_fd())?;
            Ok(None)
        }
        What::New { kind, source } => {
            let target = root.ensure(destination, Kind::Dir, 0o755)?;
            if kind != "proc" {
                refuse_inside_proc(destination, &target, None)?;
            }
            let mount = make(kind, source, options)?;
            sys::move_mount(mount.as_fd(), target.as_fd())?;
            Ok(Some(mount))
        }
        What::Controllers(folders) => {
            let target = root.ensure(destination, Kind::Dir, 0o755)?;
            attach_controllers(&target, folders, options)?;
            Ok(None)
        }
    }
}

fn default_mode(kind: Kind) -> u32 {
    match kind {
        Kind::Dir => 0o755,
        Kind::File => 0o644,
    }
}

fn set_attributes(mount: &OwnedFd, options: &Options) -> io::Result<()> {
    let fd = mount.as_fd();
    if options.propagation != 0 {
        sys::mount_setattr(fd, options.propagation_below, 0, 0, options.propagation)?;
    }
    if options.set_below != 0 {
        sys::mount_setattr(fd, true, options.set_below, 0, 0)?;
    }
    if options.set | options.clear != 0 {
        sys::mount_setattr(fd, false, options.set, options.clear, 0)?;
    }
    Ok(())
}

/// Makes a file system of its own, detached.
pub fn make(kind: &str, source: &str, options: &Options) -> io::Result<OwnedFd> {
    let fs = sys::fsopen(&CString::new(kind)?)
        .map_err(|error| with(&format!("file system {kind}"), error))?;
    let fs = fs.as_fd();
    if !source.is_empty() {
        sys::fsconfig_string(fs, c"source", &CString::new(source)?)?;
    }
    for (key, value) in &options.data {
        let name = CString::new(key.as_str())?;
        match value {
            Some(value) => sys::fsconfig_string(fs, &name, &CString::new(value.as_str())?),
            None => sys::fsconfig_flag(fs, &name),
        }
        .map_err(|error| with(&format!("option {key} of {kind}"), error))?;
    }
    sys::fsconfig_create(fs).map_err(|error| with(&format!("file system {kind}"), error))?;
    sys::fsmount(fs, options.set | options.set_below)
}

fn attach_controllers(
    target: &OwnedFd,
    folders: &BTreeMap<String, Controller>,
    options: &Options,
) -> io::Result<()> {
    let plain = Options {
        set: options.set & !libc::MOUNT_ATTR_RDONLY,
        data: vec![("mode".into(), Some("755".into()))],
        ..Options::default()
    };
    let base = make("tmpfs", "tmpfs", &plain)?;
    sys::move_mount(base.as_fd(), target.as_fd())?;
    let inside = Root(base);
    for (name, controller) in folders {
        match controller {
            Controller::Clone(mount) => {
                let point = inside.ensure(Path::new(name), Kind::Dir, 0o755)?;
                sys::mount_setattr(mount.as_fd(), false, options.set, 0, libc::MS_PRIVATE)?;
                sys::move_mount(mount.as_fd(), point.as_fd())?;
            }
            Controller::Link(to) => {
                nix::unistd::symlinkat(to.as_str(), &inside.0, name.as_str())?;
            }
        }
    }
    sys::mount_setattr(inside.as_fd(), false, options.set, 0, 0)
}

/// Files of `/proc` that may be covered: they only inform.
const COVERABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
    "/proc/net/dev",
];

/// What the runtime itself writes to `/proc` must reach the kernel, so nothing else may cover it.
fn refuse_inside_proc(
    destination: &Path,
    target: &OwnedFd,
    mount: Option<&OwnedFd>,
) -> io::Result<()> {
    let is_proc = |fd: &OwnedFd| -> io::Result<bool> {
        Ok(fstatfs(fd)?.filesystem_type() == PROC_SUPER_MAGIC)
    };
    let inside = is_proc(target)?;
    if !inside && destination != Path::new("/proc") {
        return Ok(());
    }
    if COVERABLE.iter().any(|path| destination == Path::new(path)) {
        return Ok(());
    }
    if destination == Path::new("/proc")
        && let Some(mount) = mount
        && is_proc(mount)?
    {
        return Ok(());
    }
    let destination = destination.display();
    Err(io::Error::other(format!(
        "{destination} cannot be mounted because it is inside /proc"
    )))
}

/// An error with what it is about in front.
pub fn with(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_words() {
        let parse = |words: &str| {
            let words: Vec<String> = words.split(',').map(str::to_owned).collect();
            options(&words)
        };
        let found = parse("rbind,rprivate,ro");
        assert_eq!(
            (found.bind, found.set),
            (Bind::All, libc::MOUNT_ATTR_RDONLY)
        );
        assert_eq!(found.propagation, libc::MS_PRIVATE);
        assert!(found.propagation_below && found.data.is_empty());
        // The later word wins.
        assert_eq!(parse("ro,rw").set, 0);
        assert_eq!(parse("ro,rw").clear, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parse("bind,rro").set_below, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(parse("rbind,bind").bind, Bind::All);
        let found = parse("nosuid,strictatime,mode=755,newinstance");
        assert_eq!(
            found.set,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME
        );
        let data = [
            ("mode".to_owned(), Some("755".to_owned())),
            ("newinstance".to_owned(), None),
        ];
        assert_eq!(found.data, data);
    }

    #[test]
    fn mount_a_path_lies_on() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 /d rw\n\
                     2 1 8:2 / /var/lib rw master:3 - ext4 /e rw\n\
                     3 1 8:2 / /var/li\\040b rw - ext4 /e rw\n";
        for (path, point, tags) in [
            ("/etc", "/", vec!["shared:1"]),
            ("/var/lib/x", "/var/lib", vec!["master:3"]),
            ("/var/library", "/", vec!["shared:1"]),
            ("/var/li b/y", "/var/li b", vec![]),
        ] {
            let (found, optional) = mount_of(table, Path::new(path)).unwrap();
            assert_eq!(
                (found.as_str(), optional),
                (point, tags.into_iter().map(str::to_owned).collect())
            );
        }
    }
}
