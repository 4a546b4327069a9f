//! The process that holds one pod: its namespaces, its containers, their streams and logs.
//!
//! Forked from the daemon's zygote (`vetch pod-supervisor`), which does not wait for it: it outlives
//! both and serves whichever daemon connects. One thread, no async runtime, little
//! memory. Always true:
//! - A container's end is written to its record before the kernel forgets it.
//! - No client, however slow, makes a container wait.
//! - It stays in the host's mount namespace, so that volumes mounted later are there for later
//!   containers.
//!
//! Start at [`main`]; `serve.rs` is the loop.

mod exec;
mod io;
mod requests;
mod serve;
mod start;
mod state;
mod zygote;

use std::{
    fs,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        stat::{Mode, umask},
    },
};

use crate::logging::note;

use super::{
    container::{Stage, write_sysctl},
    process, protocol,
    records::{self, PodDir, PodRecord},
    rootfs::Root,
    sys::{self, Cloned},
};
use state::{PodInit, Supervisor};
use zygote::Place;
pub use zygote::Zygote;

/// The hidden first argument that makes the program the zygote of supervisors.
pub const SUBCOMMAND: &str = "pod-supervisor";

type Failed = super::container::Failed;

/// Forks supervisors as the daemon at the other end of standard input orders.
pub fn main(args: &[std::ffi::OsString]) -> ExitCode {
    if !args.is_empty() || nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(0).is_err() {
        note(format_args!("{SUBCOMMAND} is started by the daemon"));
        return ExitCode::from(2);
    }
    process::rename(c"vetch:zygote");
    // Whatever else the daemon was started with must not be held open by pods.
    sys::close_from(3);
    sys::forget_children();
    match zygote::serve(supervise) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // the daemon starts another
    }
}

/// Makes the pod and serves it until told to end.
fn supervise(dir: &Path, place: Result<Place, Failed>) -> i32 {
    match place.and_then(|place| begin(&PodDir(dir.into()), place)) {
        Ok(()) => 0,
        Err(failed) => {
            let message = format!("{}: {}", failed.stage, failed.message);
            note(format_args!("{message}"));
            let _ = protocol::send(
                std::io::stdin().as_fd(),
                &protocol::Frame::Fatal { message },
                &[],
            );
            1
        }
    }
}

fn begin(dir: &PodDir, place: Place) -> Result<(), Failed> {
    if !place.in_group {
        place.groups.enter().stage("cgroups")?;
    }
    let record: PodRecord = records::read(&dir.pod()).stage("record")?;
    leave_service(&place.hierarchy);
    let supervisor = set_up(dir, record, place.hierarchy)?;
    serve::serve(supervisor).stage("serve")
}

/// Forks, into the group where the kernel can; says whether it did.
fn fork_into(group: &cgroups::Group, flags: i32) -> std::io::Result<(Cloned, bool)> {
    if let Some(dir) = group.unified_dir() {
        let folder = fs::File::open(&dir)?;
        match sys::clone3(flags, Some(folder.as_fd())) {
            Ok(cloned) => return Ok((cloned, true)),
            // Before Linux 5.7, or a sandbox that forbids it.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::E2BIG | libc::EINVAL | libc::EPERM | libc::EACCES)
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((sys::clone3(flags, None)?, false))
}

/// Out of the daemon's service: an init system that stops it must not find us in its group.
fn leave_service(hierarchy: &cgroups::Hierarchy) {
    let Ok(text) = fs::read_to_string("/proc/self/cgroup") else {
        return;
    };
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let file = match (parts.next(), parts.next()) {
            (_, Some("/") | None) => continue,
            (Some("name=systemd"), _) => PathBuf::from("/sys/fs/cgroup/systemd/tasks"),
            (Some(""), _) if hierarchy.layout == cgroups::Layout::V1 => match &hierarchy.v2 {
                Some(unified) => unified.join("cgroup.procs"),
                None => continue,
            },
            _ => continue,
        };
        let _ = fs::OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut file| file.write_all(b"0"));
    }
}

fn set_up(
    dir: &PodDir,
    record: PodRecord,
    hierarchy: cgroups::Hierarchy,
) -> Result<Supervisor, Failed> {
    process::rename(c"vetch:pod");
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/").stage("working directory")?;
    umask(Mode::from_bits_truncate(0o022));
    // Children on their way into a container must not be open to what runs there already.
    prctl::set_dumpable(false).stage("setup")?;
    prctl::set_child_subreaper(true).stage("setup")?;
    let _ = fs::write("/proc/self/oom_score_adj", "-998"); // a privilege not every host gives
    let first = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .stage("control socket")?;
    let null = super::devices::host_null(nix::fcntl::OFlag::O_RDWR).stage("setup")?;
    nix::unistd::dup2_stdin(&null).stage("setup")?;
    let config = &record.config;
    make_namespaces(config)?;
    for (name, value) in &config.sysctls {
        write_sysctl(name, value).stage("sysctl")?;
    }
    if !config.host_ipc {
        mount_shared_memory(dir).stage("shared memory")?;
    }
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM); // an init system's farewell to all is not meant for pods
    mask.add(Signal::SIGHUP);
    mask.add(Signal::SIGINT);
    mask.thread_block().stage("signals")?;
    let init = if config.share_processes {
        Some(start_pod_init(dir)?)
    } else {
        None
    };
    let listener = protocol::listen_in(&dir.0).stage("control socket")?;
    Supervisor::new(dir.clone(), record, hierarchy, init, listener, first, mask)
        .stage("control socket")
}

fn make_namespaces(config: &super::PodConfig) -> Result<(), Failed> {
    let mut flags = CloneFlags::empty();
    if !config.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !config.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).stage("namespaces")?;
    if !config.host_network {
        sys::loopback_up().stage("loopback")?;
        if !config.hostname.is_empty() {
            nix::unistd::sethostname(&config.hostname).stage("hostname")?;
        }
    }
    Ok(())
}

fn mount_shared_memory(dir: &PodDir) -> std::io::Result<()> {
    let point = dir.shm();
    records::private_dir(&point)?;
    mount(
        Some("shm"),
        &point,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("size=64m,mode=1777"),
    )?;
    Ok(())
}

/// Starts the first process of the pod's shared process namespace: it reaps orphans, and that is
/// all it can do, with no rights and an empty root.
fn start_pod_init(dir: &PodDir) -> Result<PodInit, Failed> {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    match sys::clone3(flags, None).stage("pod init")? {
        Cloned::Parent { pid, pidfd } => Ok(PodInit { pid, pidfd }),
        Cloned::Child => {
            process::rename(c"pod-init");
            match be_pod_init(dir) {
                Ok(never) => match never {},
                Err(_) => sys::exit_now(1),
            }
        }
    }
}

fn be_pod_init(dir: &PodDir) -> Result<std::convert::Infallible, Failed> {
    super::mount::cut_off().stage("pod init")?;
    let options = super::mount::Options {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    let empty = super::mount::make("tmpfs", "empty", &options).stage("pod init")?;
    let point: OwnedFd = fs::File::open(&dir.0).stage("pod init")?.into();
    sys::move_mount(empty.as_fd(), point.as_fd()).stage("pod init")?;
    Root(empty).enter().stage("pod init")?;
    let nobody = super::users::Resolved {
        uid: 65534,
        gid: 65534,
        ..Default::default()
    };
    process::drop_all(&nobody).stage("pod init")?;
    sys::close_from(0);
    sys::reset_signals();
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block().stage("pod init")?;
    loop {
        while sys::reap_any() {}
        let _ = child.wait();
    }
}
