//! What daemon and supervisor tell each other: one JSON document per packet, descriptors beside it.
//!
//! A container's configuration is not sent but lies in its record, which the daemon writes before
//! it asks; so packets are small. The socket is a sequenced-packet one below the pod's folder.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Exit, Io, Phase, sys};

/// Raised when an older supervisor could not understand a newer daemon, or the other way round.
pub const VERSION: u32 = 1;

/// Longest packet. Errors and command lines are cut or refused before they reach it.
pub const MAX_PACKET: usize = 128 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Repeated in the answer.
    pub number: u64,
    pub call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Starts the container whose configuration lies in its record.
    Run {
        id: String,
        io: Io,
        /// Container whose pid namespace to join.
        join: Option<String>,
    },
    /// To the container's first process.
    Signal {
        id: String,
        signal: i32,
    },
    /// SIGKILL to every process of the container's cgroup.
    Kill {
        id: String,
    },
    /// Drops what is kept of an exited container.
    Forget {
        id: String,
    },
    ReopenLog {
        id: String,
    },
    /// Makes this connection the session of a new process; it dies with the connection.
    Exec {
        id: String,
        argv: Vec<String>,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Makes this connection a client of the container's streams.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Kills everything, answers, ends.
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Frame {
    /// The first frame on every connection.
    Hello { version: u32, pid: i32 },
    /// Instead of `Hello`: the pod could not be made.
    Fatal { message: String },
    Answer {
        number: u64,
        result: Result<Streams, Failure>,
    },
    /// A container's phase, to every connection that is not a session.
    Changed { id: String, phase: Phase },
    /// The end of a session's process.
    Ended { exit: Exit },
}

/// Which descriptors lie beside an answer, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// The terminal, to resize it; with exec also its input and output.
    pub terminal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    NoContainer,
    WrongPhase(String),
    /// `recorded`: an exited container tells the same.
    Start {
        stage: String,
        message: String,
        recorded: bool,
    },
    Other(String),
}

/// A pair of connected sockets for the first connection of a new supervisor.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

const SOCKET: &str = "control.sock";

/// A socket path holds 107 bytes; through an open folder any depth fits.
fn address(pod_dir: BorrowedFd<'_>) -> io::Result<UnixAddr> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}/{SOCKET}", pod_dir.as_raw_fd());
    Ok(UnixAddr::new(path.as_str())?)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use nix::{
        fcntl::{OFlag, open},
        sys::stat::Mode,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Listens in the pod's folder, which nobody but root may enter.
pub fn listen_in(pod_dir: &Path) -> io::Result<OwnedFd> {
    let dir = open_dir(pod_dir)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&listener),
        &address(dir.as_fd())?,
    )?;
    std::fs::set_permissions(
        pod_dir.join(SOCKET),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )?;
    listen(&listener, Backlog::new(64)?)?;
    Ok(listener)
}

/// Connects to the supervisor of the pod whose folder this is.
pub fn connect_to(pod_dir: &Path) -> io::Result<OwnedFd> {
    let dir = open_dir(pod_dir)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &address(dir.as_fd())?,
    )?;
    Ok(socket)
}

pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let data = serde_json::to_vec(message)?;
    if data.len() > MAX_PACKET {
        return Err(io::Error::other("the message is longer than allowed"));
    }
    sys::send_packet(socket, &data, fds)
}

/// The next message; `None` when the peer is gone. On a socket that does not block, nothing to
/// read is the error `WouldBlock`.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    match sys::receive_packet(socket, MAX_PACKET) {
        Ok(None) => Ok(None),
        Ok(Some((data, fds))) => Ok(Some((serde_json::from_slice(&data)?, fds))),
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => Ok(None),
        Err(error) => Err(error),
    }
}
