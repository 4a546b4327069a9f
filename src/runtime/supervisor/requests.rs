//! What clients may ask for.

use std::os::fd::AsFd;

use super::{
    exec::Wanted,
    state::{Number, Supervisor},
};
use crate::runtime::{
    Phase,
    protocol::{self, Call, Failure, Frame, Request, Streams},
    sys,
};

impl Supervisor {
    /// Takes all requests that have arrived from a client.
    pub fn hear_client(&mut self, number: Number) {
        loop {
            let Some(client) = self.clients.get(&number) else {
                return;
            };
            match protocol::receive::<Request>(client.socket.as_fd()) {
                Ok(Some((request, _))) => self.answer(number, request),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.remove_client(number),
            }
        }
    }

    fn answer(&mut self, client: Number, request: Request) {
        let number = request.number;
        // Some answers come later, when a child has got somewhere.
        let result = match request.call {
            Call::Run { id, io, join } => {
                match self.run(client, number, &id, &io, join.as_deref()) {
                    Ok(()) => return,
                    Err(failure) => Err(failure),
                }
            }
            Call::Exec {
                id,
                argv,
                tty,
                stdin,
                stdout,
                stderr,
            } => {
                let wanted = Wanted {
                    tty,
                    stdin,
                    stdout,
                    stderr,
                };
                match self.exec(client, number, &id, &argv, wanted) {
                    Ok(()) => return,
                    Err(failure) => Err(failure),
                }
            }
            Call::Attach {
                id,
                stdin,
                stdout,
                stderr,
            } => {
                let wanted = Wanted {
                    tty: false,
                    stdin,
                    stdout,
                    stderr,
                };
                match self.attach(client, number, &id, wanted) {
                    Ok(()) => return,
                    Err(failure) => Err(failure),
                }
            }
            Call::Shutdown => {
                self.shut_down(client, number);
                return;
            }
            Call::Signal { id, signal } => self.signal(&id, signal),
            Call::Kill { id } => self.kill(&id),
            Call::Forget { id } => self.forget(&id),
            Call::ReopenLog { id } => self.reopen_log(&id),
            Call::Unknown => Err(Failure::Other(
                "this pod was started by a version that does not know this call".into(),
            )),
        };
        let frame = Frame::Answer {
            number,
            result: result.map(|()| Streams::default()),
        };
        self.tell(client, frame, Vec::new());
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Failure> {
        let number = self.find(id).ok_or(Failure::NoContainer)?;
        let container = &self.containers[&number];
        if container.has_ended() {
            return Ok(());
        }
        match sys::pidfd_send_signal(container.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(Failure::Other(format!("signal {signal}: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn kill(&mut self, id: &str) -> Result<(), Failure> {
        let number = self.find(id).ok_or(Failure::NoContainer)?;
        let container = &self.containers[&number];
        let _ = sys::pidfd_send_signal(container.pidfd.as_fd(), libc::SIGKILL);
        container
            .group
            .kill()
            .map_err(|error| Failure::Other(error.to_string()))
    }

    fn forget(&mut self, id: &str) -> Result<(), Failure> {
        let number = self.find(id).ok_or(Failure::NoContainer)?;
        let container = &self.containers[&number];
        let Phase::Exited { exit, .. } = container.phase.clone() else {
            return Err(Failure::WrongPhase("running".into()));
        };
        // Attached clients are told the end even if they have not taken all output.
        if let Some(container) = self.containers.remove(&number) {
            for client in container.streams.attached.keys() {
                let frame = Frame::Ended { exit: exit.clone() };
                self.tell(*client, frame, Vec::new());
            }
        }
        Ok(())
    }

    fn reopen_log(&mut self, id: &str) -> Result<(), Failure> {
        let number = self.find(id).ok_or(Failure::NoContainer)?;
        let Some(container) = self.containers.get_mut(&number) else {
            return Err(Failure::NoContainer);
        };
        container
            .streams
            .log
            .reopen()
            .map_err(|error| Failure::Other(format!("open log: {error}")))
    }

    fn shut_down(&mut self, client: Number, number: u64) {
        self.shutdown = Some((client, number));
        self.kill_everything();
    }

    /// Kills all that runs in the pod, but ourselves.
    pub fn kill_everything(&mut self) {
        for container in self.containers.values().filter(|one| !one.has_ended()) {
            let _ = sys::pidfd_send_signal(container.pidfd.as_fd(), libc::SIGKILL);
            let _ = container.group.kill();
        }
        if let Some(init) = &self.init {
            let _ = sys::pidfd_send_signal(init.pidfd.as_fd(), libc::SIGKILL);
        }
    }
}
