//! What a supervisor holds, and how it becomes a record.

use std::{
    collections::BTreeMap,
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    time::SystemTime,
};

use nix::sys::{
    signal::SigSet,
    signalfd::{SfdFlags, SignalFd},
};

use super::io::Streams;
use crate::{
    logging::note,
    runtime::{
        Exit, Phase,
        protocol::{self, Frame},
        records::{self, PodDir, PodRecord, StateRecord},
        sys,
        users::Resolved,
    },
};

/// Frames that may wait for a daemon that does not read; it is cut off when they are more.
const MOST_WAITING: usize = 4096;

/// Our own names for containers, clients and execs: never used twice.
pub type Number = u32;

pub struct Supervisor {
    pub dir: PodDir,
    pub pod: PodRecord,
    pub hierarchy: cgroups::Hierarchy,
    pub init: Option<PodInit>,
    pub own_pid_namespace: OwnedFd,
    pub listener: OwnedFd,
    pub signals: SignalFd,
    pub containers: BTreeMap<Number, Container>,
    pub executions: BTreeMap<Number, Execution>,
    pub clients: BTreeMap<Number, Client>,
    /// Who asked for the end; answered once nothing runs.
    pub shutdown: Option<(Number, u64)>,
    last_number: Number,
}

/// First process of a shared pid namespace.
pub struct PodInit {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

pub struct Container {
    pub id: String,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub group: cgroups::Group,
    pub phase: Phase,
    pub user: Option<Resolved>,
    /// Until its program runs.
    pub launch: Option<Launch>,
    pub streams: Streams,
}

/// A child on its way to exec.
pub struct Launch {
    pub reports: OwnedFd,
    pub client: Number,
    pub request: u64,
    pub ready: bool,
    pub failed: Option<(String, String)>,
}

/// A process that joined a container.
pub struct Execution {
    pub container: Number,
    pub client: Number,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub launch: Option<Launch>,
    /// Our ends of its streams, until they are handed over.
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
}

pub struct Client {
    pub socket: OwnedFd,
    pub role: Role,
    /// What it could not take yet.
    pub waiting: VecDeque<(Frame, Vec<OwnedFd>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Asks, and hears of every change.
    Control,
    /// One exec or attach.
    Session,
}

impl Supervisor {
    pub fn new(
        dir: PodDir,
        pod: PodRecord,
        hierarchy: cgroups::Hierarchy,
        init: Option<PodInit>,
        listener: OwnedFd,
        first: OwnedFd,
        mask: SigSet,
    ) -> io::Result<Self> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let mut supervisor = Self {
            dir,
            pod,
            hierarchy,
            init,
            own_pid_namespace: std::fs::File::open("/proc/self/ns/pid")?.into(),
            listener,
            signals: SignalFd::with_flags(&mask, flags)?,
            containers: BTreeMap::new(),
            executions: BTreeMap::new(),
            clients: BTreeMap::new(),
            shutdown: None,
            last_number: 0,
        };
        supervisor.add_client(first)?;
        Ok(supervisor)
    }

    pub fn number(&mut self) -> Number {
        self.last_number += 1;
        self.last_number
    }

    /// Greets a connection.
    pub fn add_client(&mut self, socket: OwnedFd) -> io::Result<()> {
        set_nonblocking(&socket)?;
        let number = self.number();
        let client = Client {
            socket,
            role: Role::Control,
            waiting: VecDeque::new(),
        };
        self.clients.insert(number, client);
        let hello = Frame::Hello {
            version: protocol::VERSION,
            oldest: Some(protocol::OLDEST),
            pid: std::process::id().cast_signed(),
        };
        self.tell(number, hello, Vec::new());
        Ok(())
    }

    /// Sends a frame, or keeps it until the client takes it.
    pub fn tell(&mut self, number: Number, frame: Frame, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        client.waiting.push_back((frame, fds));
        if !client.flush() || client.waiting.len() > MOST_WAITING {
            self.remove_client(number);
        }
    }

    /// Tells every daemon a container's phase.
    pub fn announce(&mut self, container: Number) {
        let Some(container) = self.containers.get(&container) else {
            return;
        };
        let (id, phase) = (container.id.clone(), container.phase.clone());
        let control: Vec<Number> = self
            .clients
            .iter()
            .filter(|(_, client)| client.role == Role::Control)
            .map(|(number, _)| *number)
            .collect();
        for number in control {
            let frame = Frame::Changed {
                id: id.clone(),
                phase: phase.clone(),
            };
            self.tell(number, frame, Vec::new());
        }
    }

    /// A connection is gone: its exec dies with it, its attached streams are let go.
    pub fn remove_client(&mut self, number: Number) {
        if self.clients.remove(&number).is_none() {
            return;
        }
        let gone: Vec<Number> = self
            .executions
            .iter()
            .filter(|(_, execution)| execution.client == number)
            .map(|(number, _)| *number)
            .collect();
        for execution in gone {
            self.kill_execution(execution);
        }
        for container in self.containers.values_mut() {
            container.streams.detach(number);
        }
    }

    pub fn find(&self, id: &str) -> Option<Number> {
        self.containers
            .iter()
            .find(|(_, container)| container.id == id)
            .map(|(number, _)| *number)
    }

    /// Writes the container's record. A full disk is no reason to lose the container itself.
    pub fn save(&self, container: &Container) {
        let record = StateRecord {
            version: records::VERSION,
            phase: container.phase.clone(),
            user: container.user.clone(),
        };
        if let Err(error) = records::write(&self.dir.container_state(&container.id), &record) {
            note(format_args!(
                "record of container {}: {error}",
                container.id
            ));
        }
    }

    pub fn all_ended(&self) -> bool {
        self.containers.values().all(Container::has_ended)
    }
}

impl Container {
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Exited { .. })
    }

    pub fn end(&mut self, exit: Exit, now: SystemTime) {
        let started = match self.phase {
            Phase::Running { started, .. } => Some(started),
            Phase::Created | Phase::Exited { .. } => None,
        };
        self.phase = Phase::Exited {
            exit,
            started,
            finished: now,
        };
    }
}

impl Client {
    /// Sends what waits; false when the client is gone.
    pub fn flush(&mut self) -> bool {
        while let Some((frame, fds)) = self.waiting.front() {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match protocol::send(self.socket.as_fd(), frame, &fds) {
                Ok(()) => {
                    self.waiting.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// How a process ended, as records tell it.
pub fn exit_of(ended: sys::Ended, oom_killed: bool) -> Exit {
    Exit {
        code: ended.code,
        signal: ended.signal,
        oom_killed,
        error: String::new(),
    }
}
