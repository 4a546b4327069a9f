//! The process supervisors are forked from.
//!
//! A program this size takes milliseconds and megabytes to start, most of it for relocations; a fork
//! takes neither and shares what the zygote has. It belongs to one daemon and ends with it; the
//! supervisors it forked go on.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use super::{Failed, SUBCOMMAND, fork_into};
use crate::runtime::{
    container::Stage,
    link::lock,
    protocol::{self, Frame},
    sys::{self, Cloned},
};

/// The daemon's order; the supervisor's socket and its log lie beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    pod_dir: PathBuf,
    /// The control group that the supervisor belongs into.
    group: String,
}

impl protocol::Growing for Order {}

/// The daemon's handle.
#[derive(Debug)]
pub struct Zygote {
    program: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    socket: OwnedFd,
    process: Child,
}

impl Zygote {
    /// `program` is run when the first pod is made.
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            running: Mutex::new(None),
        }
    }

    /// Forks a supervisor for the pod, into its group; it greets, or says what failed, over `socket`.
    /// Blocks.
    pub fn fork(
        &self,
        pod_dir: &Path,
        group: &str,
        socket: &OwnedFd,
        log: &fs::File,
    ) -> std::io::Result<()> {
        let order = Order {
            pod_dir: pod_dir.into(),
            group: group.to_owned(),
        };
        let mut running = lock(&self.running);
        if let Some(zygote) = &*running {
            match protocol::send(
                zygote.socket.as_fd(),
                &order,
                &[socket.as_fd(), log.as_fd()],
            ) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, "the zygote is gone; starting another"),
            }
        }
        drop(running.take());
        let zygote = running.insert(self.start()?);
        protocol::send(
            zygote.socket.as_fd(),
            &order,
            &[socket.as_fd(), log.as_fd()],
        )
    }

    fn start(&self) -> std::io::Result<Running> {
        let (ours, theirs) = protocol::pair()?;
        let process = Command::new(&self.program)
            .arg0("vetch")
            .arg(SUBCOMMAND)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Running {
            socket: ours,
            process,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves the daemon on standard input until it is gone.
pub fn serve(supervise: impl Fn(&Path, Result<Place, Failed>) -> i32) -> std::io::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let hierarchy = cgroups::Hierarchy::detect();
    while let Some((order, fds)) = protocol::receive::<Order>(socket.as_fd())? {
        let mut fds = fds.into_iter();
        let (Some(connection), Some(log)) = (fds.next(), fds.next()) else {
            continue;
        };
        let groups = open(hierarchy.as_ref(), &order.group);
        let forked = match &groups {
            Ok((_, groups)) => fork_into(&groups.own, 0),
            // It says so itself.
            Err(_) => sys::clone3(0, None).map(|cloned| (cloned, false)),
        };
        match forked {
            Ok((Cloned::Parent { .. }, _)) => {}
            Ok((Cloned::Child, in_group)) => {
                drop(socket);
                sys::heed_children();
                let ready = nix::unistd::dup2_stdin(&connection)
                    .and_then(|()| nix::unistd::dup2_stderr(&log));
                drop((connection, log));
                let place = groups.map(|(hierarchy, groups)| Place {
                    hierarchy: hierarchy.clone(),
                    groups,
                    in_group,
                });
                sys::exit_now(match ready {
                    Ok(()) => supervise(&order.pod_dir, place),
                    Err(_) => 1,
                });
            }
            Err(error) => {
                let message = format!("fork: {error}");
                let _ = protocol::send(connection.as_fd(), &Frame::Fatal { message }, &[]);
            }
        }
    }
    Ok(())
}

/// Where a supervisor belongs.
pub struct Groups {
    /// With cgroup v1 in one tree only.
    own: cgroups::Group,
    /// Where it is in the other trees.
    all: Option<cgroups::Group>,
}

impl Groups {
    /// Moves the calling process there, which has one thread.
    pub fn enter(&self) -> Result<(), cgroups::Error> {
        if let Some(all) = &self.all {
            all.enter()?;
        }
        self.own.enter()
    }
}

/// A supervisor's control groups.
pub struct Place {
    pub hierarchy: cgroups::Hierarchy,
    pub groups: Groups,
    /// Whether the kernel put it there at once.
    pub in_group: bool,
}

/// The supervisor's own group and that of all, which are there.
fn open<'a>(
    hierarchy: Result<&'a cgroups::Hierarchy, &cgroups::Error>,
    name: &str,
) -> Result<(&'a cgroups::Hierarchy, Groups), Failed> {
    let hierarchy = hierarchy.stage("cgroups")?;
    let own = cgroups::Group::open(&hierarchy.one_tree(), name).stage("cgroups")?;
    let all = match (hierarchy.layout, name.rsplit_once('/')) {
        (cgroups::Layout::V1, Some((all, _))) => {
            Some(cgroups::Group::open(hierarchy, all).stage("cgroups")?)
        }
        _ => None,
    };
    Ok((hierarchy, Groups { own, all }))
}
