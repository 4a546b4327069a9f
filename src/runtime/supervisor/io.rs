//! A container's streams: from its pipes or terminal to the log and to attached clients, and from
//! those to its input.
//!
//! A client that reads slower than the container writes gets a bounded buffer and is then let go.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::SystemTime,
};

use super::state::Number;
use crate::runtime::{
    log_writer::{LogWriter, Stream},
    sys,
};

/// Output kept for one stream of a slow client, and for all clients of a container together.
const MOST_PENDING: usize = 1 << 20;
const MOST_PENDING_OF_ALL: usize = 8 << 20;
/// Output still taken from a container that has ended, if something of it goes on writing.
const MOST_AT_END: usize = 4 << 20;
pub const CHUNK: usize = 64 << 10;

pub struct Streams {
    pub log: LogWriter,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Instead of pipes.
    pub terminal: Option<OwnedFd>,
    pub stdin: Option<Input>,
    pub stdin_once: bool,
    pub attached: BTreeMap<Number, Attached>,
}

/// The container's standard input.
pub struct Input {
    /// The pipe; `None` on a terminal, which is written itself.
    pub pipe: Option<OwnedFd>,
    pending: Vec<u8>,
    /// Close once all is written.
    ending: bool,
}

/// One client's ends of the streams it asked for.
pub struct Attached {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<Outlet>,
    pub stderr: Option<Outlet>,
}

pub struct Outlet {
    pub fd: OwnedFd,
    pending: Vec<u8>,
}

impl Outlet {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            pending: Vec::new(),
        }
    }

    pub fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes what it can; false when the client is gone, or more than `most` behind.
    fn push(&mut self, data: &[u8], most: usize) -> bool {
        if self.pending.is_empty() {
            let Ok(written) = write_some(self.fd.as_fd(), data) else {
                return false;
            };
            self.pending.extend_from_slice(&data[written..]);
        } else {
            self.pending.extend_from_slice(data);
        }
        self.pending.len() <= most
    }

    fn flush(&mut self) -> bool {
        let Ok(written) = write_some(self.fd.as_fd(), &self.pending) else {
            return false;
        };
        self.pending.drain(..written);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
        true
    }
}

impl Input {
    pub fn new(pipe: Option<OwnedFd>) -> Self {
        Self {
            pipe,
            pending: Vec::new(),
            ending: false,
        }
    }
}

/// As much as fits now.
fn write_some(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < data.len() {
        match nix::unistd::write(fd, &data[written..]) {
            Ok(count) => written += count,
            Err(nix::errno::Errno::EAGAIN) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(written)
}

impl Streams {
    /// Where one stream of output is read from.
    pub fn source(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.terminal.as_ref().or(self.stdout.as_ref()),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// Reads one chunk and hands it on; 0 when there is nothing more for now.
    pub fn pump(&mut self, stream: Stream, buffer: &mut [u8]) -> usize {
        let Some(source) = self.source(stream) else {
            return 0;
        };
        match sys::read(source, buffer) {
            Ok(count) if count > 0 => {
                self.log.append(stream, &buffer[..count], SystemTime::now());
                self.fan_out(stream, &buffer[..count]);
                return count;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return 0;
            }
            // The end; a terminal tells it as an I/O error.
            Ok(_) | Err(_) => {}
        }
        self.log.finish(stream, SystemTime::now());
        match stream {
            Stream::Stdout => {
                self.stdout = None;
                self.terminal = None;
            }
            Stream::Stderr => self.stderr = None,
        }
        0
    }

    /// Takes what a container that has ended left behind.
    pub fn drain(&mut self, buffer: &mut [u8]) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut total = 0;
            while total < MOST_AT_END {
                match self.pump(stream, buffer) {
                    0 => break,
                    count => total += count,
                }
            }
            self.log.finish(stream, SystemTime::now());
        }
    }

    fn fan_out(&mut self, stream: Stream, data: &[u8]) {
        // Two streams each.
        let share = MOST_PENDING_OF_ALL / (2 * self.attached.len()).max(1);
        let most = share.min(MOST_PENDING);
        for attached in self.attached.values_mut() {
            let outlet = attached.outlet(stream);
            if outlet
                .as_mut()
                .is_some_and(|outlet| !outlet.push(data, most))
            {
                *outlet = None;
            }
        }
    }

    pub fn flush_client(&mut self, client: Number, stream: Stream) {
        if let Some(attached) = self.attached.get_mut(&client) {
            let outlet = attached.outlet(stream);
            if outlet.as_mut().is_some_and(|outlet| !outlet.flush()) {
                *outlet = None;
            }
        }
    }

    /// Whether a client still has output to take.
    pub fn is_behind(&self, client: Number) -> bool {
        self.attached.get(&client).is_some_and(|attached| {
            [&attached.stdout, &attached.stderr]
                .into_iter()
                .flatten()
                .any(Outlet::is_behind)
        })
    }

    /// Takes input of a client to the container. Only called while no input waits.
    pub fn feed(&mut self, client: Number, buffer: &mut [u8]) {
        let Some(attached) = self.attached.get_mut(&client) else {
            return;
        };
        let Some(source) = &attached.stdin else {
            return;
        };
        match sys::read(source, buffer) {
            Ok(0) => {
                attached.stdin = None;
                self.client_left();
            }
            Ok(count) => {
                if let Some(input) = &mut self.stdin {
                    input.pending.extend_from_slice(&buffer[..count]);
                }
                self.flush_input();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => attached.stdin = None,
        }
    }

    /// Whether input waits for the container to read.
    pub fn input_waits(&self) -> bool {
        self.stdin
            .as_ref()
            .is_some_and(|input| !input.pending.is_empty())
    }

    /// What input is written to, while there is any.
    pub fn input_fd(&self) -> Option<&OwnedFd> {
        let input = self.stdin.as_ref()?;
        input.pipe.as_ref().or(self.terminal.as_ref())
    }

    pub fn flush_input(&mut self) {
        let Some(fd) = self.input_fd() else { return };
        let Some(input) = &self.stdin else { return };
        let written = write_some(fd.as_fd(), &input.pending);
        if let Some(input) = &mut self.stdin {
            match written {
                Ok(written) => {
                    input.pending.drain(..written);
                }
                Err(_) => {
                    // The container has closed its input.
                    input.pending.clear();
                    input.ending = true;
                }
            }
            if input.ending && input.pending.is_empty() {
                self.stdin = None;
            }
        }
    }

    /// A client ended its input or left.
    fn client_left(&mut self) {
        if !self.stdin_once {
            return;
        }
        if let Some(input) = &mut self.stdin {
            input.ending = true;
        }
        self.flush_input();
    }

    pub fn detach(&mut self, client: Number) {
        if let Some(attached) = self.attached.remove(&client)
            && attached.stdin.is_some()
        {
            self.client_left();
        }
    }
}

impl Attached {
    fn outlet(&mut self, stream: Stream) -> &mut Option<Outlet> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Attached clients that read nothing, and what they would read from.
    fn streams(folder: &std::path::Path, clients: Number) -> (Streams, Vec<UnixStream>) {
        let mut far = Vec::new();
        let attached = (0..clients).map(|number| {
            let (near, other) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            far.push(other);
            let attached = Attached {
                stdin: None,
                stdout: Some(Outlet::new(near.into())),
                stderr: None,
            };
            (number, attached)
        });
        let streams = Streams {
            log: LogWriter::open(&folder.join("log")).unwrap(),
            stdout: None,
            stderr: None,
            terminal: None,
            stdin: None,
            stdin_once: false,
            attached: attached.collect(),
        };
        (streams, far)
    }

    #[test]
    fn a_client_that_is_too_far_behind_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        for (clients, most) in [(1, MOST_PENDING), (16, MOST_PENDING_OF_ALL / 32)] {
            let (mut streams, _far) = streams(folder.path(), clients);
            let chunk = [b'x'; CHUNK];
            let mut kept = 0;
            while streams.attached.values().any(|one| one.stdout.is_some()) {
                let outlets = streams
                    .attached
                    .values()
                    .filter_map(|one| one.stdout.as_ref());
                kept = outlets.map(|one| one.pending.len()).max().unwrap_or(0);
                assert!(kept <= most, "{clients} clients: {kept} of {most}");
                streams.fan_out(Stream::Stdout, &chunk);
            }
            assert!(kept > most - CHUNK, "{clients} clients: let go at {kept}");
        }
    }
}
