//! The steps of a forked child on its way to be a container's first process, or an exec in one.
//!
//! Runs in the child only; nothing here returns to the supervisor's loop. What it has to say goes
//! over a packet socket that closes at exec: whom it runs as, its terminal, "ready", or the stage
//! that failed and why.

use std::{
    convert::Infallible,
    fmt::Display,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
    sys::{
        stat::{Mode, SFlag, fstat, umask},
        statfs::{FsType, fstatfs},
    },
    unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setsid},
};
use oci_spec::runtime::{Linux, Process, Spec};
use serde::{Deserialize, Serialize};

use super::{
    ContainerConfig, Rootfs, devices,
    mount::{self, Options, Sources},
    process::{self, Program},
    records::{self, ContainerRecord},
    rootfs::{self, Kind, Root},
    sys,
    users::{self, Resolved},
};

/// What the child tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    User(Resolved),
    /// The terminal's near end lies beside it.
    Terminal,
    /// Only the system call filter and exec are left.
    Ready,
    Failed {
        stage: String,
        message: String,
    },
}

impl super::protocol::Growing for Report {}

/// A step that failed.
#[derive(Debug)]
pub struct Failed {
    pub stage: &'static str,
    pub message: String,
}

pub trait Stage<T> {
    fn stage(self, stage: &'static str) -> Result<T, Failed>;
}

impl<T, E: Display> Stage<T> for Result<T, E> {
    fn stage(self, stage: &'static str) -> Result<T, Failed> {
        self.map_err(|error| Failed {
            stage,
            message: error.to_string(),
        })
    }
}

/// Errors quote paths and names of the image's making.
const LONGEST_MESSAGE: usize = 4096;

/// Stage of errors in the configuration rather than in carrying it out.
pub const USER_STAGE: &str = "user";

/// The child's end of its streams.
pub enum Stdio {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    },
    /// Made inside the container's own `/dev/pts`.
    Terminal,
}

/// What a container's child is given.
pub struct Start<'a> {
    pub config: PathBuf,
    pub state_dir: &'a Path,
    pub shm: &'a Path,
    pub group: &'a cgroups::Group,
    pub hierarchy: &'a cgroups::Hierarchy,
    pub cgroup: &'a str,
    /// Whether the kernel put us into the group at clone.
    pub in_group: bool,
    pub stdio: Stdio,
    pub reports: OwnedFd,
}

/// What an exec's child is given.
pub struct Exec<'a> {
    pub config: PathBuf,
    pub container: BorrowedFd<'a>,
    pub group: &'a cgroups::Group,
    pub in_group: bool,
    pub user: &'a Resolved,
    pub argv: &'a [String],
    pub stdio: Stdio,
    pub reports: OwnedFd,
}

/// Runs a child's steps; it ends in the program or with exit code 128, never back in the caller.
pub fn run_child(reports: &OwnedFd, steps: impl FnOnce() -> Result<Infallible, Failed>) -> ! {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(steps));
    let failed = match result {
        Ok(Ok(never)) => match never {},
        Ok(Err(failed)) => failed,
        Err(_) => Failed {
            stage: "setup",
            message: "a step panicked; see the supervisor's log".into(),
        },
    };
    let message: String = failed.message.chars().take(LONGEST_MESSAGE).collect();
    tell(
        reports,
        &Report::Failed {
            stage: failed.stage.into(),
            message,
        },
        &[],
    );
    sys::exit_now(128)
}

fn tell(reports: &OwnedFd, report: &Report, fds: &[BorrowedFd<'_>]) {
    // A supervisor that is gone is told nothing; the container goes on all the same.
    let _ = super::protocol::send(reports.as_fd(), report, fds);
}

/// All steps of a container's first process.
pub fn start(start: &Start<'_>) -> Result<Infallible, Failed> {
    process::rename(c"vetch:init");
    let _ = setsid();
    let record: ContainerRecord = records::read(&start.config).stage("record")?;
    let config = &record.config;
    let spec = &config.oci;
    let process = process_of(spec)?;
    let linux = spec.linux().clone().unwrap_or_default();
    if !start.in_group {
        start.group.enter().stage("cgroup")?;
    }
    if start.hierarchy.layout == cgroups::Layout::V2 && !sees_host_groups(spec) {
        unshare(CloneFlags::CLONE_NEWCGROUP).stage("cgroup namespace")?;
    }
    umask(Mode::empty());
    let sources = Sources {
        shm: start.shm,
        hierarchy: start.hierarchy,
        cgroup: start.cgroup,
    };
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut prepared = Vec::with_capacity(mounts.len());
    for entry in mounts {
        let one = mount::prepare(entry, &sources);
        prepared.push(one.map_err(|error| on_mount(entry.destination(), &error))?);
    }
    mount::cut_off().stage("mount namespace")?;
    let Rootfs::Layers(layers) = &config.rootfs;
    let dir = records::root_dir(start.state_dir, &record.id);
    let root = rootfs::mount_overlay(layers, &dir).stage("root filesystem")?;
    let user = resolve_user(&root, config, process)?;
    tell(&start.reports, &Report::User(user.clone()), &[]);
    for one in &prepared {
        let made = mount::attach(&root, one);
        let made = made.map_err(|error| on_mount(&one.destination, &error))?;
        if let Some(dev) = made
            && one.destination == Path::new("/dev")
        {
            devices::fill(&dev).stage("devices")?;
        }
    }
    drop(prepared);
    for device in linux.devices().iter().flatten() {
        devices::make(&root, device)
            .map_err(|error| mount::with(&device.path().display().to_string(), error))
            .stage("devices")?;
    }
    let stdio = take_stdio(&start.stdio, &root, &start.reports)?;
    if let (Stdio::Terminal, Some(terminal)) = (&start.stdio, &stdio[0]) {
        bind_console(&root, terminal).stage("console")?;
    }
    hide(&root, &linux).stage("masked paths")?;
    set_oom_score(process).stage("oom score")?;
    for (name, value) in linux.sysctl().iter().flatten() {
        write_sysctl(name, value).stage("sysctl")?;
    }
    let _ = root.ensure(process.cwd(), Kind::Dir, 0o755); // entering it says what is wrong
    if spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
        sys::mount_setattr(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)
            .stage("read-only root")?;
    }
    let propagation = match linux.rootfs_propagation().as_deref() {
        Some("shared" | "rshared") => libc::MS_SHARED,
        Some("slave" | "rslave") => libc::MS_SLAVE,
        _ => libc::MS_PRIVATE,
    };
    sys::mount_setattr(root.as_fd(), false, 0, 0, propagation).stage("propagation")?;
    root.enter().stage("pivot root")?;
    install_stdio(stdio, user.uid).stage("stdio")?;
    let program = Program {
        process,
        argv: process.args().as_deref().unwrap_or_default(),
        user: &user,
        seccomp: linux.seccomp().as_ref(),
        tty: matches!(start.stdio, Stdio::Terminal),
    };
    process::become_program(&program, || tell(&start.reports, &Report::Ready, &[]))
}

/// All steps of a process that joins a running container. Its pid namespace was joined by the
/// supervisor, right before the fork.
pub fn exec(exec: &Exec<'_>) -> Result<Infallible, Failed> {
    process::rename(c"vetch:exec");
    let _ = setsid();
    let record: ContainerRecord = records::read(&exec.config).stage("record")?;
    let spec = &record.config.oci;
    let process = process_of(spec)?;
    if !exec.in_group {
        exec.group.enter().stage("cgroup")?;
    }
    set_oom_score(process).stage("oom score")?;
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    setns(exec.container, namespaces).stage("join namespaces")?;
    let here = nix::fcntl::open(
        "/",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    let root = Root(here.stage("root filesystem")?);
    let stdio = take_stdio(&exec.stdio, &root, &exec.reports)?;
    install_stdio(stdio, exec.user.uid).stage("stdio")?;
    let linux = spec.linux().clone().unwrap_or_default();
    let program = Program {
        process,
        argv: exec.argv,
        user: exec.user,
        seccomp: linux.seccomp().as_ref(),
        tty: matches!(exec.stdio, Stdio::Terminal),
    };
    process::become_program(&program, || tell(&exec.reports, &Report::Ready, &[]))
}

fn process_of(spec: &Spec) -> Result<&Process, Failed> {
    spec.process().as_ref().ok_or_else(|| Failed {
        stage: "record",
        message: "the specification has no process".into(),
    })
}

fn on_mount(destination: &Path, error: &io::Error) -> Failed {
    Failed {
        stage: "mount",
        message: format!("{}: {error}", destination.display()),
    }
}

/// A container that may write control groups sees the host's tree.
fn sees_host_groups(spec: &Spec) -> bool {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let Some(mount) = mounts
        .iter()
        .find(|mount| mount.typ().as_deref() == Some("cgroup"))
    else {
        return false;
    };
    !mount.options().iter().flatten().any(|word| word == "ro")
}

fn resolve_user(
    root: &Root,
    config: &ContainerConfig,
    process: &Process,
) -> Result<Resolved, Failed> {
    let passwd = root.read("/etc/passwd").stage(USER_STAGE)?;
    let group = root.read("/etc/group").stage(USER_STAGE)?;
    let given = process.user();
    let more = given.additional_gids().as_deref().unwrap_or_default();
    let user = match &config.user {
        Some(user) => users::resolve(user, &passwd, &group, more, true),
        None => {
            let numbers = format!("{}:{}", given.uid(), given.gid());
            users::resolve(&numbers, &passwd, &group, more, false)
        }
    }
    .stage(USER_STAGE)?;
    if config.must_not_be_root && user.uid == 0 {
        return Err(Failed {
            stage: USER_STAGE,
            message: "container has runAsNonRoot and image will run as root".into(),
        });
    }
    Ok(user)
}

/// Opens the child's three streams.
fn take_stdio(
    stdio: &Stdio,
    root: &Root,
    reports: &OwnedFd,
) -> Result<[Option<OwnedFd>; 3], Failed> {
    let null = || -> Result<OwnedFd, Failed> {
        devices::null_in(root)
            .or_else(|_| devices::host_null(OFlag::O_RDWR))
            .stage("stdio")
    };
    match stdio {
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            let mut found = [None, None, None];
            for (slot, pipe) in found.iter_mut().zip([stdin, stdout, stderr]) {
                *slot = Some(match pipe {
                    Some(pipe) => pipe.try_clone().stage("stdio")?,
                    None => null()?,
                });
            }
            Ok(found)
        }
        Stdio::Terminal => {
            let peer = open_terminal(root, reports).stage("terminal")?;
            sys::set_controlling_terminal(peer.as_fd()).stage("terminal")?;
            let copy = || peer.try_clone().stage("terminal");
            Ok([Some(copy()?), Some(copy()?), Some(copy()?)])
        }
    }
}

/// A terminal of the container's own devpts; its near end goes to the supervisor.
fn open_terminal(root: &Root, reports: &OwnedFd) -> io::Result<OwnedFd> {
    const DEVPTS_SUPER_MAGIC: FsType = FsType(0x1cd1);
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = root.open(Path::new("/dev/pts/ptmx"), flags)?;
    if fstatfs(&master)?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::other("/dev/pts is not a devpts"));
    }
    let peer = sys::terminal_peer(master.as_fd())?;
    tell(reports, &Report::Terminal, &[master.as_fd()]);
    Ok(peer)
}

fn bind_console(root: &Root, terminal: &OwnedFd) -> io::Result<()> {
    let target = root.ensure(Path::new("/dev/console"), Kind::File, 0o600)?;
    let flags = libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32;
    let mount = sys::open_tree(Some(terminal.as_fd()), sys::ITSELF, flags)?;
    sys::move_mount(mount.as_fd(), target.as_fd())
}

/// Puts the streams on 0, 1 and 2, owned by the user so that it may open `/dev/stdout` anew.
fn install_stdio(stdio: [Option<OwnedFd>; 3], uid: u32) -> io::Result<()> {
    for fd in stdio.iter().flatten() {
        let is_null = fstat(fd)?.st_rdev == nix::sys::stat::makedev(1, 3);
        if uid != 0 && !is_null {
            let _ = fchown(fd, Some(Uid::from_raw(uid)), None); // only helps, never needed
        }
    }
    if let [Some(stdin), Some(stdout), Some(stderr)] = &stdio {
        dup2_stdin(stdin)?;
        dup2_stdout(stdout)?;
        dup2_stderr(stderr)?;
    }
    Ok(())
}

/// Covers masked paths and makes others read-only; those that do not exist are no matter.
fn hide(root: &Root, linux: &Linux) -> io::Result<()> {
    for path in linux.readonly_paths().iter().flatten() {
        let Some(target) = existing(root, path)? else {
            continue;
        };
        let clone = clone_of(&target, libc::AT_RECURSIVE as u32)?;
        sys::mount_setattr(clone.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
        sys::move_mount(clone.as_fd(), target.as_fd())?;
    }
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    if masked.is_empty() {
        return Ok(());
    }
    let null = devices::host_null(OFlag::O_PATH)?;
    let mut empty: Option<OwnedFd> = None;
    for path in masked {
        let Some(target) = existing(root, path)? else {
            continue;
        };
        let cover = if fstat(&target)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
            clone_of(&null, 0)?
        } else if let Some(empty) = &empty {
            clone_of(empty, 0)? // one for all
        } else {
            let options = Options {
                set: libc::MOUNT_ATTR_RDONLY
                    | libc::MOUNT_ATTR_NOSUID
                    | libc::MOUNT_ATTR_NODEV
                    | libc::MOUNT_ATTR_NOEXEC,
                data: vec![("mode".into(), Some("755".into()))],
                ..Options::default()
            };
            mount::make("tmpfs", "tmpfs", &options)?
        };
        sys::move_mount(cover.as_fd(), target.as_fd())?;
        if empty.is_none() && rootfs::is_dir(cover.as_fd())? {
            empty = Some(cover);
        }
    }
    Ok(())
}

fn clone_of(fd: &OwnedFd, flags: u32) -> io::Result<OwnedFd> {
    let flags = flags | libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32;
    sys::open_tree(Some(fd.as_fd()), sys::ITSELF, flags)
}

fn existing(root: &Root, path: &str) -> io::Result<Option<OwnedFd>> {
    match root.open(Path::new(path), OFlag::O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What a container gets that shall be spared, on a host that does not let us: the daemon and the
/// supervisors, at 0 or below, must still be spared before it.
const SPARED_LAST: i32 = 2;

/// Sets whom the kernel kills first. Going below what was inherited takes a privilege that not every
/// host gives us.
fn set_oom_score(process: &Process) -> io::Result<()> {
    let Some(score) = process.oom_score_adj() else {
        return Ok(());
    };
    let write = |score: i32| fs::write("/proc/self/oom_score_adj", score.to_string());
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match write(score) {
        Err(error) if denied(&error) => match write(score.max(SPARED_LAST)) {
            Err(error) if denied(&error) => Ok(()),
            other => other,
        },
        other => other,
    }
}

/// Writes a kernel setting of this process's namespaces. The name may be spelled with dots or
/// slashes: whichever comes first parts it.
pub fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = sysctl_path(name)
        .ok_or_else(|| io::Error::other(format!("{name:?} is not the name of a setting")))?;
    fs::write(Path::new("/proc/sys").join(path), value)
        .map_err(|error| mount::with(&format!("{name} = {value:?}"), error))
}

fn sysctl_path(name: &str) -> Option<String> {
    let slashes = name.find('/').unwrap_or(usize::MAX) < name.find('.').unwrap_or(usize::MAX);
    let path: String = if slashes {
        name.into()
    } else {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect()
    };
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
    };
    path.split('/').all(plain).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_settings() {
        for (name, want) in [
            ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
            (
                "net/ipv4/conf/eth0.1/rp_filter",
                Some("net/ipv4/conf/eth0.1/rp_filter"),
            ),
            (
                "net.ipv4.conf.eth0/1.rp_filter",
                Some("net/ipv4/conf/eth0.1/rp_filter"),
            ),
            ("kernel.core_pattern\n", None),
            ("kernel.a=1", None),
            ("a..b", None),
            ("../../etc/passwd", None),
            ("/etc", None),
            ("", None),
        ] {
            assert_eq!(sysctl_path(name).as_deref(), want, "{name:?}");
        }
    }
}
