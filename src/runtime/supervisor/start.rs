//! Starting a container: fork, hear of its steps, and its end.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::SystemTime,
};

use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::pipe2,
};

use super::{
    fork_into,
    io::{CHUNK, Input, Streams},
    state::{Container, Launch, Number, Supervisor, exit_of, set_nonblocking},
};
use crate::{
    logging::note,
    runtime::{
        Exit, Io, Phase, cgroup,
        container::{self, Report, Start, Stdio, USER_STAGE},
        log_writer::LogWriter,
        protocol::{self, Failure, Frame, Streams as Granted},
        sys::{self, Cloned, Ended},
    },
};

/// Exit code of a container whose program never ran.
const NOT_STARTED: i32 = 128;

/// Reader and writer of a pipe for others.
pub fn blocking_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// Both ends of a stream: the child's and ours, which never blocks.
pub fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&reader)?;
    Ok((reader, writer))
}

pub fn input_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&writer)?;
    Ok((reader, writer))
}

/// The socket a child reports over: ours does not block.
pub fn report_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    set_nonblocking(&ours)?;
    Ok((ours, theirs))
}

impl Supervisor {
    /// Forks the container's first process. The answer follows once its program runs, or failed to.
    pub fn run(
        &mut self,
        client: Number,
        request: u64,
        id: &str,
        io: &Io,
        join: Option<&str>,
    ) -> Result<(), Failure> {
        if self.shutdown.is_some() {
            return Err(Failure::Other("the pod is being removed".into()));
        }
        if self.find(id).is_some() {
            return Err(Failure::WrongPhase("there already".into()));
        }
        let other = |what: &str, error: io::Error| Failure::Other(format!("{what}: {error}"));
        let name = cgroup::child_name(&self.pod.cgroup_root, &self.pod.config.cgroup, id);
        let group = cgroups::Group::open(&self.hierarchy, &name)
            .map_err(|error| Failure::Other(error.to_string()))?;
        let log = LogWriter::open(&io.log_path)
            .map_err(|error| other(&format!("open log {}", io.log_path.display()), error))?;
        let mut streams = Streams {
            log,
            stdout: None,
            stderr: None,
            terminal: None,
            stdin: None,
            stdin_once: io.stdin_once,
            attached: Default::default(),
        };
        let stdio = if io.tty {
            streams.stdin = io.stdin.then(|| Input::new(None));
            Stdio::Terminal
        } else {
            let (stdout, child_stdout) = output_pipe().map_err(|error| other("pipe", error))?;
            let (stderr, child_stderr) = output_pipe().map_err(|error| other("pipe", error))?;
            (streams.stdout, streams.stderr) = (Some(stdout), Some(stderr));
            let mut stdin = None;
            if io.stdin {
                let (child, ours) = input_pipe().map_err(|error| other("pipe", error))?;
                stdin = Some(child);
                streams.stdin = Some(Input::new(Some(ours)));
            }
            Stdio::Pipes {
                stdin,
                stdout: Some(child_stdout),
                stderr: Some(child_stderr),
            }
        };
        let (reports, child_reports) = report_pair().map_err(|error| other("socket", error))?;
        let mut flags = libc::CLONE_NEWNS;
        let joined = match (join, &self.init) {
            (Some(target), _) => {
                let target = self.find(target).ok_or(Failure::NoContainer)?;
                Some(&self.containers[&target].pidfd)
            }
            (None, Some(init)) => Some(&init.pidfd),
            (None, None) => None,
        };
        match joined {
            Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWPID)
                .map_err(|errno| other("join the pid namespace", errno.into()))?,
            None if self.pod.config.host_pid => {}
            None => flags |= libc::CLONE_NEWPID,
        }
        let cloned = fork_into(&group, flags);
        if let Ok((Cloned::Child, in_group)) = cloned {
            let shm = if self.pod.config.host_ipc {
                "/dev/shm".into()
            } else {
                self.dir.shm()
            };
            let start = Start {
                config: self.dir.container_config(id),
                state_dir: &self.pod.state_dir,
                shm: &shm,
                group: &group,
                hierarchy: &self.hierarchy,
                cgroup: &name,
                in_group,
                stdio,
                reports: child_reports,
            };
            container::run_child(&start.reports, || container::start(&start));
        }
        if joined.is_some() {
            self.leave_pid_namespace();
        }
        let (pid, pidfd) = match cloned {
            Ok((Cloned::Parent { pid, pidfd }, _)) => (pid, pidfd),
            Ok((Cloned::Child, _)) => sys::exit_now(NOT_STARTED), // handled above
            Err(error) => return Err(other("clone", error)),
        };
        let launch = Launch {
            reports,
            client,
            request,
            ready: false,
            failed: None,
        };
        let container = Container {
            id: id.into(),
            pid,
            pidfd,
            group,
            phase: Phase::Created,
            user: None,
            launch: Some(launch),
            streams,
        };
        let number = self.number();
        self.containers.insert(number, container);
        Ok(())
    }

    /// Children are forked into our own pid namespace again.
    pub fn leave_pid_namespace(&self) {
        if let Err(errno) = setns(&self.own_pid_namespace, CloneFlags::CLONE_NEWPID) {
            // Every later container would land in the wrong namespace.
            note(format_args!("leave the pid namespace: {errno}"));
            std::process::abort();
        }
    }

    /// Hears what a starting container has to say; at the end of it, it runs or has failed.
    pub fn hear_container(&mut self, number: Number) {
        loop {
            let Some(container) = self.containers.get_mut(&number) else {
                return;
            };
            let Some(launch) = &mut container.launch else {
                return;
            };
            match protocol::receive::<Report>(launch.reports.as_fd()) {
                Ok(Some((Report::User(user), _))) => container.user = Some(user),
                Ok(Some((Report::Terminal, fds))) => {
                    container.streams.terminal = fds.into_iter().next();
                    if let Some(terminal) = &container.streams.terminal {
                        let _ = set_nonblocking(terminal);
                    }
                }
                Ok(Some((Report::Ready, _))) => launch.ready = true,
                Ok(Some((Report::Failed { stage, message }, _))) => {
                    launch.failed = Some((stage, message));
                }
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        self.finish_launch(number);
    }

    /// The child closed its report socket: by exec, or because it is gone.
    fn finish_launch(&mut self, number: Number) {
        let Some(container) = self.containers.get_mut(&number) else {
            return;
        };
        let Some(launch) = container.launch.take() else {
            return;
        };
        let failed = match (launch.failed, launch.ready) {
            (Some(failed), _) => Some(failed),
            (None, true) => None,
            (None, false) => Some((
                "setup".to_owned(),
                match container.group.oom_kills() {
                    Ok(1..) => "the memory limit is too low to start the container".into(),
                    _ => "it was killed before its program started".into(),
                },
            )),
        };
        let result = match failed {
            None => {
                container.phase = Phase::Running {
                    pid: container.pid,
                    started: SystemTime::now(),
                };
                Ok(Granted::default())
            }
            Some((stage, message)) => {
                let _ = sys::pidfd_send_signal(container.pidfd.as_fd(), libc::SIGKILL);
                let recorded = stage != USER_STAGE;
                let exit = Exit {
                    code: NOT_STARTED,
                    signal: None,
                    oom_killed: false,
                    error: format!("{stage}: {message}"),
                };
                container.end(exit, SystemTime::now());
                Err(Failure::Start {
                    stage,
                    message,
                    recorded,
                })
            }
        };
        if matches!(
            result,
            Err(Failure::Start {
                recorded: false,
                ..
            })
        ) {
            self.containers.remove(&number);
        } else {
            self.save(&self.containers[&number]);
            self.announce(number);
        }
        let frame = Frame::Answer {
            number: launch.request,
            result,
        };
        self.tell(launch.client, frame, Vec::new());
    }

    /// A child ended: record it, then let the kernel forget it.
    pub fn child_ended(&mut self, ended: Ended) {
        let container = self
            .containers
            .iter()
            .find(|(_, container)| container.pid == ended.pid && !container.has_ended())
            .map(|(number, _)| *number);
        let execution = self
            .executions
            .iter()
            .find(|(_, execution)| execution.pid == ended.pid)
            .map(|(number, _)| *number);
        if let Some(number) = container {
            self.container_ended(number, ended);
        } else if let Some(number) = execution {
            self.execution_ended(number, ended);
        } else if self.init.as_ref().is_some_and(|init| init.pid == ended.pid) {
            note(format_args!("the pod's first process ended: {ended:?}"));
        }
        sys::reap(ended.pid);
    }

    fn container_ended(&mut self, number: Number, ended: Ended) {
        self.hear_container(number);
        let shared = self.init.is_some() || self.pod.config.host_pid;
        let Some(container) = self.containers.get_mut(&number) else {
            return;
        };
        if container.has_ended() {
            return; // its start failed, and that was recorded
        }
        if shared {
            // No namespace died with it, so what it started may live on.
            let _ = container.group.kill();
        }
        let mut buffer = vec![0; CHUNK];
        container.streams.drain(&mut buffer);
        let oom_killed =
            ended.code != 0 && container.group.oom_kills().is_ok_and(|kills| kills > 0);
        let exit = exit_of(ended, oom_killed);
        container.end(exit.clone(), SystemTime::now());
        container.streams.stdin = None;
        self.save(&self.containers[&number]);
        self.announce(number);
        self.end_attached(number, &exit);
    }

    /// Tells attached clients the end, as soon as they have taken all output.
    pub fn end_attached(&mut self, number: Number, exit: &Exit) {
        let Some(container) = self.containers.get_mut(&number) else {
            return;
        };
        let streams = &mut container.streams;
        let done: Vec<Number> = streams
            .attached
            .keys()
            .copied()
            .filter(|client| !streams.is_behind(*client))
            .collect();
        for client in done {
            if let Some(container) = self.containers.get_mut(&number) {
                container.streams.attached.remove(&client);
            }
            let frame = Frame::Ended { exit: exit.clone() };
            self.tell(client, frame, Vec::new());
        }
    }
}
