//! Processes that join a running container, and clients that attach to its streams.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
};

use nix::sched::{CloneFlags, setns};

use super::{
    fork_into,
    io::{Attached, Outlet},
    start::{blocking_pipe, report_pair},
    state::{Execution, Launch, Number, Role, Supervisor, exit_of, set_nonblocking},
};
use crate::runtime::{
    Phase,
    container::{self, Exec, Report, Stdio},
    protocol::{self, Failure, Frame, Streams as Granted},
    sys::{self, Cloned, Ended},
};

/// What a new session asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Supervisor {
    fn running(&self, id: &str) -> Result<Number, Failure> {
        let number = self.find(id).ok_or(Failure::NoContainer)?;
        match self.containers[&number].phase {
            Phase::Running { .. } => Ok(number),
            Phase::Created => Err(Failure::WrongPhase("not started".into())),
            Phase::Exited { .. } => Err(Failure::WrongPhase("exited".into())),
        }
    }

    /// Forks a process into a container. The answer follows once its program runs, or failed to.
    pub fn exec(
        &mut self,
        client: Number,
        request: u64,
        id: &str,
        argv: &[String],
        wanted: Wanted,
    ) -> Result<(), Failure> {
        let number = self.running(id)?;
        let other = |what: &str, error: io::Error| Failure::Other(format!("{what}: {error}"));
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        let stdio = if wanted.tty {
            Stdio::Terminal
        } else {
            let pipe = |on: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>), Failure> {
                if !on {
                    return Ok((None, None));
                }
                let (reader, writer) = blocking_pipe().map_err(|error| other("pipe", error))?;
                Ok((Some(reader), Some(writer)))
            };
            let (child_stdin, ours) = pipe(wanted.stdin)?;
            stdin = ours;
            let (ours, child_stdout) = pipe(wanted.stdout)?;
            stdout = ours;
            let (ours, child_stderr) = pipe(wanted.stderr)?;
            stderr = ours;
            Stdio::Pipes {
                stdin: child_stdin,
                stdout: child_stdout,
                stderr: child_stderr,
            }
        };
        let (reports, child_reports) = report_pair().map_err(|error| other("socket", error))?;
        let container = &self.containers[&number];
        let user = container.user.clone().unwrap_or_default();
        setns(&container.pidfd, CloneFlags::CLONE_NEWPID)
            .map_err(|errno| other("join the pid namespace", errno.into()))?;
        let cloned = fork_into(&container.group, 0);
        if let Ok((Cloned::Child, in_group)) = cloned {
            let exec = Exec {
                config: self.dir.container_config(id),
                container: container.pidfd.as_fd(),
                group: &container.group,
                in_group,
                user: &user,
                argv,
                stdio,
                reports: child_reports,
            };
            container::run_child(&exec.reports, || container::exec(&exec));
        }
        self.leave_pid_namespace();
        let (pid, pidfd) = match cloned {
            Ok((Cloned::Parent { pid, pidfd }, _)) => (pid, pidfd),
            Ok((Cloned::Child, _)) => sys::exit_now(128), // handled above
            Err(error) => return Err(other("clone", error)),
        };
        let execution = Execution {
            container: number,
            client,
            pid,
            pidfd,
            launch: Some(Launch {
                reports,
                client,
                request,
                ready: false,
                failed: None,
            }),
            stdin,
            stdout,
            stderr,
            terminal: None,
        };
        let number = self.number();
        self.executions.insert(number, execution);
        self.make_session(client);
        Ok(())
    }

    fn make_session(&mut self, client: Number) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.role = Role::Session;
        }
    }

    pub fn hear_execution(&mut self, number: Number) {
        loop {
            let Some(execution) = self.executions.get_mut(&number) else {
                return;
            };
            let Some(launch) = &mut execution.launch else {
                return;
            };
            match protocol::receive::<Report>(launch.reports.as_fd()) {
                Ok(Some((Report::User(_), _))) => {}
                Ok(Some((Report::Terminal, fds))) => execution.terminal = fds.into_iter().next(),
                Ok(Some((Report::Ready, _))) => launch.ready = true,
                Ok(Some((Report::Failed { stage, message }, _))) => {
                    launch.failed = Some((stage, message));
                }
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        let Some(execution) = self.executions.get_mut(&number) else {
            return;
        };
        let Some(launch) = execution.launch.take() else {
            return;
        };
        let failure = match (launch.failed, launch.ready) {
            (Some((stage, message)), _) => Some((stage, message)),
            (None, true) => None,
            (None, false) => Some(("setup".into(), "it was killed before it started".into())),
        };
        let client = execution.client;
        let (result, fds) = match failure {
            Some((stage, message)) => {
                let _ = sys::pidfd_send_signal(execution.pidfd.as_fd(), libc::SIGKILL);
                self.executions.remove(&number);
                let failure = Failure::Start {
                    stage,
                    message,
                    recorded: false,
                };
                (Err(failure), Vec::new())
            }
            None => {
                let granted = Granted {
                    stdin: execution.stdin.is_some(),
                    stdout: execution.stdout.is_some(),
                    stderr: execution.stderr.is_some(),
                    terminal: execution.terminal.is_some(),
                };
                let fds = [
                    execution.stdin.take(),
                    execution.stdout.take(),
                    execution.stderr.take(),
                    execution.terminal.take(),
                ];
                (Ok(granted), fds.into_iter().flatten().collect())
            }
        };
        let frame = Frame::Answer {
            number: launch.request,
            result,
        };
        self.tell(client, frame, fds);
    }

    pub fn execution_ended(&mut self, number: Number, ended: Ended) {
        self.hear_execution(number);
        let Some(execution) = self.executions.remove(&number) else {
            return;
        };
        let frame = Frame::Ended {
            exit: exit_of(ended, false),
        };
        self.tell(execution.client, frame, Vec::new());
    }

    /// Kills an exec's process and what it started; its end is noticed as any other.
    pub fn kill_execution(&mut self, number: Number) {
        let Some(execution) = self.executions.get(&number) else {
            return;
        };
        let members = self
            .containers
            .get(&execution.container)
            .and_then(|container| container.group.processes().ok())
            .unwrap_or_default();
        // First the whole tree is known, then it is felled from the root: no orphan slips away.
        let tree = tree_of(execution.pid, &members);
        let _ = sys::pidfd_send_signal(execution.pidfd.as_fd(), libc::SIGKILL);
        for pid in tree {
            if let Ok(pidfd) = sys::pidfd_open(pid) {
                let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }

    /// Gives a client its own ends of a container's streams.
    pub fn attach(
        &mut self,
        client: Number,
        request: u64,
        id: &str,
        wanted: Wanted,
    ) -> Result<(), Failure> {
        let number = self.running(id)?;
        let other = |error: io::Error| Failure::Other(format!("attach: {error}"));
        let Some(container) = self.containers.get_mut(&number) else {
            return Err(Failure::NoContainer);
        };
        let streams = &mut container.streams;
        let mut attached = Attached {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        let mut granted = Granted::default();
        let mut fds = Vec::new();
        if wanted.stdin && streams.stdin.is_some() {
            let (ours, theirs) = blocking_pipe().map_err(other)?;
            set_nonblocking(&ours).map_err(other)?;
            attached.stdin = Some(ours);
            granted.stdin = true;
            fds.push(theirs);
        }
        let outlet = || -> Result<(OwnedFd, Outlet), Failure> {
            let (theirs, ours) = blocking_pipe().map_err(other)?;
            set_nonblocking(&ours).map_err(other)?;
            Ok((theirs, Outlet::new(ours)))
        };
        if wanted.stdout {
            let (theirs, ours) = outlet()?;
            attached.stdout = Some(ours);
            granted.stdout = true;
            fds.push(theirs);
        }
        if wanted.stderr && streams.terminal.is_none() {
            let (theirs, ours) = outlet()?;
            attached.stderr = Some(ours);
            granted.stderr = true;
            fds.push(theirs);
        }
        if let Some(terminal) = &streams.terminal {
            granted.terminal = true;
            fds.push(terminal.try_clone().map_err(other)?);
        }
        streams.attached.insert(client, attached);
        self.make_session(client);
        let frame = Frame::Answer {
            number: request,
            result: Ok(granted),
        };
        self.tell(client, frame, fds);
        Ok(())
    }
}

/// Members that descend from `root`, or belong to its session and so once did.
fn tree_of(root: i32, members: &BTreeSet<i32>) -> BTreeSet<i32> {
    let facts: Vec<(i32, i32, i32)> = members
        .iter()
        .filter_map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (parent, session) = parent_and_session(&text)?;
            Some((*pid, parent, session))
        })
        .collect();
    let mut tree = BTreeSet::from([root]);
    loop {
        let before = tree.len();
        for (pid, parent, session) in &facts {
            if tree.contains(parent) || tree.contains(session) {
                tree.insert(*pid);
            }
        }
        if tree.len() == before {
            tree.remove(&root);
            return tree;
        }
    }
}

/// Fields 4 and 6 of `/proc/<pid>/stat`. The name before them may hold anything, even `)`.
fn parent_and_session(stat: &str) -> Option<(i32, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some((parent, session))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        assert_eq!(parent_and_session("7 (a) b) S 3 4 5 0 -1"), Some((3, 5)));
        assert_eq!(parent_and_session("garbage"), None);
    }
}
