//! The supervisor's loop: wait for any descriptor, do what it asks for, again.

use std::{io, os::fd::AsFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{SockFlag, accept4, getsockopt, sockopt::PeerCredentials},
};

use super::{
    io::CHUNK,
    state::{Number, Supervisor},
};
use crate::{
    logging::note,
    runtime::{
        Phase,
        log_writer::Stream,
        protocol::{Frame, Streams},
        sys,
    },
};

/// What a descriptor in the wait list belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Signals,
    Client(Number),
    Launch(Number),
    ExecLaunch(Number),
    Output(Number, Stream),
    Input(Number),
    AttachedInput(Number, Number),
    AttachedOutput(Number, Number, Stream),
}

/// Serves until told to end and nothing runs.
pub fn serve(mut supervisor: Supervisor) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let ready = supervisor.wait()?;
        for source in ready {
            supervisor.handle(source, &mut buffer);
        }
        if let Some((client, number)) = supervisor.shutdown
            && supervisor.all_ended()
        {
            let frame = Frame::Answer {
                number,
                result: Ok(Streams::default()),
            };
            supervisor.tell(client, frame, Vec::new());
            return Ok(());
        }
    }
}

impl Supervisor {
    /// Waits until something can be done; which, most urgent first.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Listener, Source::Signals];
        let reads = PollFlags::POLLIN;
        let mut waits = vec![
            PollFd::new(self.listener.as_fd(), reads),
            PollFd::new(self.signals.as_fd(), reads),
        ];
        let mut add = |source, fd, flags| {
            sources.push(source);
            waits.push(PollFd::new(fd, flags));
        };
        for (number, client) in &self.clients {
            let mut flags = reads;
            flags.set(PollFlags::POLLOUT, !client.waiting.is_empty());
            add(Source::Client(*number), client.socket.as_fd(), flags);
        }
        for (number, execution) in &self.executions {
            if let Some(launch) = &execution.launch {
                add(Source::ExecLaunch(*number), launch.reports.as_fd(), reads);
            }
        }
        for (number, container) in &self.containers {
            if let Some(launch) = &container.launch {
                add(Source::Launch(*number), launch.reports.as_fd(), reads);
            }
            let streams = &container.streams;
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Some(fd) = streams.source(stream) {
                    add(Source::Output(*number, stream), fd.as_fd(), reads);
                }
            }
            let input_waits = streams.input_waits();
            if input_waits && let Some(fd) = streams.input_fd() {
                add(Source::Input(*number), fd.as_fd(), PollFlags::POLLOUT);
            }
            for (client, attached) in &streams.attached {
                if !input_waits && let Some(fd) = &attached.stdin {
                    add(Source::AttachedInput(*number, *client), fd.as_fd(), reads);
                }
                for (stream, outlet) in [
                    (Stream::Stdout, &attached.stdout),
                    (Stream::Stderr, &attached.stderr),
                ] {
                    if let Some(outlet) = outlet.as_ref().filter(|outlet| outlet.is_behind()) {
                        let source = Source::AttachedOutput(*number, *client, stream);
                        add(source, outlet.fd.as_fd(), PollFlags::POLLOUT);
                    }
                }
            }
        }
        loop {
            match poll(&mut waits, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => break,
            }
        }
        let ready = waits.iter().map(|wait| wait.any().unwrap_or(true));
        Ok(sources
            .into_iter()
            .zip(ready)
            .filter_map(|(source, ready)| ready.then_some(source))
            .collect())
    }

    fn handle(&mut self, source: Source, buffer: &mut [u8]) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.children_ended(),
            Source::Client(number) => {
                if let Some(client) = self.clients.get_mut(&number)
                    && !client.flush()
                {
                    return self.remove_client(number);
                }
                self.hear_client(number);
            }
            Source::Launch(number) => self.hear_container(number),
            Source::ExecLaunch(number) => self.hear_execution(number),
            Source::Output(number, stream) => {
                if let Some(container) = self.containers.get_mut(&number) {
                    container.streams.pump(stream, buffer);
                }
            }
            Source::Input(number) => {
                if let Some(container) = self.containers.get_mut(&number) {
                    container.streams.flush_input();
                }
            }
            Source::AttachedInput(number, client) => {
                if let Some(container) = self.containers.get_mut(&number) {
                    container.streams.feed(client, buffer);
                }
            }
            Source::AttachedOutput(number, client, stream) => {
                let Some(container) = self.containers.get_mut(&number) else {
                    return;
                };
                container.streams.flush_client(client, stream);
                if let Phase::Exited { exit, .. } = container.phase.clone() {
                    self.end_attached(number, &exit);
                }
            }
        }
    }

    /// Takes new connections; only root's, whatever the folder's mode has become.
    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        while let Ok(socket) = sys::owned_socket(accept4(
            std::os::fd::AsRawFd::as_raw_fd(&self.listener),
            flags,
        )) {
            let trusted = getsockopt(&socket, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
            if trusted && let Err(error) = self.add_client(socket) {
                note(format_args!("greet a client: {error}"));
            }
        }
    }

    fn children_ended(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            match sys::next_ended() {
                Ok(Some(ended)) => self.child_ended(ended),
                Ok(None) => return,
                Err(error) => {
                    note(format_args!("wait for children: {error}"));
                    return;
                }
            }
        }
    }
}
