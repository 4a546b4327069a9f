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

use super::SUBCOMMAND;
use crate::runtime::{
    link::lock,
    protocol,
    sys::{self, Cloned},
};

/// The daemon's order; the supervisor's socket and its log lie beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    pod_dir: PathBuf,
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

    /// Forks a supervisor for the pod; it greets, or says what failed, over `socket`. Blocks.
    pub fn fork(&self, pod_dir: &Path, socket: &OwnedFd, log: &fs::File) -> std::io::Result<()> {
        let order = Order {
            pod_dir: pod_dir.into(),
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
pub fn serve(supervise: impl Fn(&Path) -> i32) -> std::io::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    while let Some((order, fds)) = protocol::receive::<Order>(socket.as_fd())? {
        let mut fds = fds.into_iter();
        let (Some(connection), Some(log)) = (fds.next(), fds.next()) else {
            continue;
        };
        match sys::clone3(0, None)? {
            Cloned::Parent { pid, .. } => sys::reap(pid),
            Cloned::Child => {
                drop(socket);
                let ready = nix::unistd::dup2_stdin(&connection)
                    .and_then(|()| nix::unistd::dup2_stderr(&log));
                drop((connection, log));
                sys::exit_now(match ready {
                    Ok(()) => supervise(&order.pod_dir),
                    Err(_) => 1,
                });
            }
        }
    }
    Ok(())
}
